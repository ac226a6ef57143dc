"""The folder of a run: what is in it, who may write it, and what config.json remembers besides the settings.

    workdir/
      config.json       settings, versions, commit, commands, data: `tfspike.config.to_json`
      metrics.jsonl tb/ what happened, step by step
      checkpoints/      `tfspike.checkpoints`
      saved_model/      and other exports
      finished.json     written last; names the epochs and exports that are done
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from tfspike import config as config_lib
from tfspike import files, weights
from tfspike.config.config import Config
from tfspike.errors import UserError
from tfspike.runs.provenance import command, commit, machine, versions

CHECKPOINTS, FINISHED, TENSORBOARD = "checkpoints", "finished.json", "tb"
CONVERTED = "model.keras"  # of a folder that `tfspike.conversion` wrote
Say = Callable[[str], None]


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
    """`prepare` for the time of a command; one that ends before config.json is written leaves nothing on the disk."""
    path, made = os.path.abspath(workdir), []
    while not os.path.lexists(path):
        made.append(path)
        path = os.path.dirname(path)
    lock, lock_file = None, os.path.join(workdir, ".lock")
    first = not os.path.lexists(lock_file)
    try:
        lock = prepare(workdir)
        yield
    finally:
        if not os.path.lexists(os.path.join(workdir, "config.json")):
            with contextlib.suppress(OSError):  # of a folder that is not there, or holds what others wrote
                if lock is not None and first:
                    os.remove(lock_file)
                for folder in made:
                    os.rmdir(folder)
        if lock is not None:
            lock.close()


def prepare(workdir: str) -> Any:
    """Makes the folder and locks it for this process; keep what is returned.

    Raises:
      UserError: it cannot be written, or another process trains in it.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as file:
            file.write(b"x")
            file.flush()
        lock = open(os.path.join(workdir, ".lock"), "wb")  # held until the process ends
    except OSError as error:
        raise UserError(f"Cannot write into the workdir {workdir}: {error.strerror or error}. Give a --workdir that "
                        "can be written and has room.") from None
    if not files.take_lock(lock, wait=False):
        lock.close()
        raise UserError(f"Another process is training in {workdir}; wait for it, or give another --workdir.")
    return lock


def is_finished(workdir: str, config: Config) -> bool:
    """Whether the run in `workdir` has trained all epochs and written all exports of `config`."""
    exports = finished(workdir, config).get("export")
    return isinstance(exports, list) and all(name in exports for name in config.export)


def finished(workdir: str, config: Config) -> dict[str, Any]:
    """finished.json of a run that has trained all epochs of `config`; {} where it has not."""
    try:
        with open(os.path.join(workdir, FINISHED), encoding="utf-8") as file:
            done = json.loads(file.read(100_000))
        return dict(done) if done["epochs"] == config.epochs else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def mark_finished(workdir: str, config: Config, step: int) -> None:
    """Writes finished.json: every epoch trained, every export written."""
    text = json.dumps({"epochs": config.epochs, "step": step, "export": list(config.export)})
    files.write_file(os.path.join(workdir, FINISHED), text + "\n")


# ---- config.json -------------------------------------------------------------------------------------------------


def write_config(config: Config, data: dict[str, Any], init_from: str | None) -> None:
    """Writes config.json; of an earlier part of the run it keeps commands, machines and the weights it began with. Of
    surrogates and neurons of the user's own it has checksums.

    Args:
      config: resolved settings.
      data: what the run must remember of its data; the same on every part of a run.
      init_from: weights that the run begins with.
    """
    from tfspike.models import own

    workdir = str(config.workdir)
    before = run_metadata(workdir) if os.path.isfile(os.path.join(workdir, "config.json")) else {}
    commands = [*before.get("commands", []), command()]
    machines = list(dict.fromkeys([*before.get("machines", []), machine()]))
    record = {"versions": versions(), "commit": commit(), "machines": machines, "commands": commands, "data": data,
              "init_from": place_of_weights(init_from) if init_from else before.get("init_from")}
    code = own.checksums((config.surrogate, config.neuron))
    if code:
        record["own_code"] = code
    files.write_file(os.path.join(workdir, "config.json"), config_lib.to_json(config, record))


def place_of_weights(init_from: str) -> str:
    """What --init_from means in any folder: a whole path, or a name of the library's weights."""
    return init_from if weights.is_meant(init_from) else os.path.abspath(init_from)


def settle_again(config: Config, data: dict[str, Any], say: Say) -> Any:
    """Where the folder of a run is gone while it trains: makes it again, so that nothing that is trained is lost.

    Args:
      config, data: as for `write_config`.
      say: takes the sentence about it.

    Returns:
      What `prepare` returns; None where the folder is still there.
    """
    workdir = str(config.workdir)
    if os.path.isfile(os.path.join(workdir, "config.json")):
        return None
    say(f"Warning: {workdir} was moved or deleted while its run was training. The run goes on there, in a new folder; "
        "checkpoints and logs until now are where the old one was moved to.")
    lock = prepare(workdir)
    write_config(config, data, None)
    return lock


def run_metadata(workdir: str) -> dict[str, Any]:
    """What config.json keeps beside the settings; {} where it cannot be read."""
    try:
        with open(os.path.join(workdir, "config.json"), encoding="utf-8-sig") as file:
            record = json.loads(file.read(1_000_001))["about"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
