"""Packs a run of train.py for a machine that has JAX and a GPU but no TensorFlow, and takes it back.

    python -m benchmarks.hlo.pack data packed/data -- --dataset=cifar10                 # its pictures, once
    python -m benchmarks.hlo.pack run packed/RUN -- --model=vgg9 --dataset=cifar10      # and any other flag of train.py
    python3 -m benchmarks.hlo.train packed/RUN --data packed/data --out RUN             # there
    python -m benchmarks.hlo.pack take RUN -- --model=vgg9 --dataset=cifar10 --workdir=... --epochs=...

`run` writes the HLO of the training step and of validation, with first weights. `take` makes a finished run of what
came back, for eval.py, exports and `tfspike results`; it is given the same flags, and as many epochs as were trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import steps
from benchmarks.hlo import export, pictures, train
from tfspike import config as config_lib
from tfspike import datasets, distribution, files
from tfspike.config import flags
from tfspike.config.config import Config, RunOptions
from tfspike.distribution import Worker
from tfspike.errors import UserError
from tfspike.runs import provenance, workdir
from tfspike.training.trainer import Trainer


def pack(config: Config, options: RunOptions, folder: Path, half: bool = False,
         say: Callable[[str], None] = print) -> None:
    """Writes run.json, step.hlo.gz, validation.hlo.gz and start.npz.

    Args:
      config: of the run.
      options: its `init_from` is heeded.
      folder: to write.
      half: weights travel in half precision, there and back.
      say: takes lines for the user.

    Raises:
      UserError: the run has event data, several windows or no validation, which the other side does not know.
    """
    steps.as_on_a_gpu()
    trainer = Trainer(config, distribution.make_strategy("one"), Worker(), say)
    if trainer.info.event_based or config.timesteps_schedule or not len(trainer.val_index):
        raise UserError("A packed run has images, one window and validation records; train others with train.py.")
    trainer.initialise(options.init_from)
    variables = _all(trainer)
    start = {f"v{i}": train.travelling(np.asarray(one.value), half) for i, one in enumerate(variables)}
    images, labels = trainer.stream.batch(0)
    inputs = tf.constant(images), tf.constant(labels, tf.int32)
    step = trainer.train_step
    evaluate = trainer.evaluator.step
    validation = (tf.constant(images), tf.ones(len(images)), tf.constant(0, tf.int64))
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "config": dataclasses.asdict(config), "init_from": options.init_from, "commit": provenance.commit(),
        "versions": provenance.versions(), "steps_per_epoch": trainer.progress.steps_per_epoch,
        "info": trainer.info.to_dict(), "half": half, "names": step.names,
        "model": list(range(len(trainer.model.variables))),
        "learning_rate": next(i for i, one in enumerate(variables) if one.path.endswith("learning_rate")),
        "step": _write(folder, "step", step.graph(*inputs), step.module(*inputs, "hlo_serialized"),
                       step.module(*inputs, "hlo"), variables, 3),
        "validation": _write(folder, "validation", evaluate.get_concrete_function(*validation),
                             *(evaluate.experimental_get_compiler_ir(*validation)(stage=stage)
                               for stage in ("hlo_serialized", "hlo")), variables, 3),
    }
    np.savez_compressed(folder / "start.npz", **start)
    (folder / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _all(trainer: Trainer) -> list[Any]:
    """Variables of a run in one order, of the model and of the optimiser."""
    return [*trainer.model.variables, *trainer.optimizer.variables]


def _place(variables: list[Any], wanted: Any) -> int:
    return next(i for i, variable in enumerate(variables) if variable.value is wanted)


def _write(folder: Path, name: str, function: Any, hlo: bytes, text: str, variables: list[Any],
           inputs: int) -> dict[str, Any]:
    """Writes a program; says which variables its arguments after `inputs` are, and which results are new values."""
    (folder / f"{name}.hlo.gz").write_bytes(gzip.compress(export.portable(hlo), mtime=0))
    arguments = [_place(variables, variable) for variable in export.held_variables(function)]
    return {"variables": arguments,
            "updates": [(result, arguments[argument - inputs]) for result, argument in export.updates_of(text)]}


def take(config: Config, back: Path, given: list[str], say: Callable[[str], None] = print) -> None:
    """Makes the finished run of `config` in its workdir of what `benchmarks.hlo.train` wrote.

    Args:
      config: of the run.
      back: what `benchmarks.hlo.train` wrote.
      given: the flags of train.py that `config` was made of.
      say: takes lines for the user.

    Raises:
      UserError: it is of another run, or was not trained to its end.
    """
    record = json.loads((back / "record.json").read_text(encoding="utf-8"))
    ignored = {"workdir", "data_dir", "export", "tensorboard"}  # which say nothing of what is trained
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    differ = [name for name, value in record["config"].items() if name not in ignored and mine[name] != value]
    if differ:
        raise UserError(f"{back} was trained with other settings than these flags give: {', '.join(differ)}.")
    if record["trained"] < record["epochs"]:
        raise UserError(f"{back} ends after epoch {record['trained']} of {record['epochs']}: it was stopped, or "
                        "diverged. Train it again, or pack it with fewer --epochs.")
    with workdir.held(str(config.workdir)):
        trainer = Trainer(config, distribution.make_strategy("one"), Worker(), say)
        at, variables = trainer.progress, _all(trainer)
        workdir.write_config(config, trainer.data_record, record["init_from"])
        about = workdir.run_metadata(str(config.workdir)) | {
            "machines": [f"{record['card']}, JAX {record['jax']} (benchmarks.hlo.train)"], "commit": record["commit"],
            "versions": record["versions"], "commands": [shlex.join(["python", "train.py", *given])]}
        if record["half"]:
            about["weights"] = "the first and the best ones were rounded to half precision"
        files.write_file(str(Path(str(config.workdir)) / "config.json"), config_lib.to_json(config, about))
        (Path(str(config.workdir)) / "metrics.jsonl").write_bytes((back / "metrics.jsonl").read_bytes())
        with np.load(back / "weights.npz") as kept:
            for name in kept.files:
                variables[int(name)].assign(kept[name])
        at.step = record["best_epoch"] * at.steps_per_epoch
        at.note_validation(record["val_accuracy"])
        at.save(best=True)
        workdir.mark_finished(str(config.workdir), config, at.last_step)
    say(f"{config.workdir}: best validation accuracy {100 * record['val_accuracy']:.2f} % after epoch "
        f"{record['best_epoch']} of {record['epochs']}.")


def main(argv: list[str] | None = None) -> int:
    """The command; 2 for a mistake that is explained in a sentence."""
    given = list(sys.argv[1:] if argv is None else argv)
    place = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "run", "take"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", action="store_true", help="weights travel in half precision, there and back")
    mine = parser.parse_args(given[:place])
    with flags.user_errors():
        config, options, *_ = flags.parse(given[place + 1:])
        if mine.what == "data":
            data = datasets.load(config.dataset, "train", config.data_dir, extra=config.extra)
            pictures.write(mine.folder, np.asarray(data.images), data.labels)
        elif mine.what == "run":
            pack(config, options, mine.folder, mine.half)
        else:
            take(config, mine.folder, given[place + 1:])
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
