"""A finished run becomes trained weights that come with the library, with their card.

    python -m tfspike.pretrained --workdir=RUN
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfspike import config as config_lib
from tfspike import files, output
from tfspike.config import flags
from tfspike.config.config import Config
from tfspike.config.settings import COUNT, data_dir_setting, normalise_all, setting, verbose_setting
from tfspike.datasets.catalogue import Source, facts
from tfspike.errors import UserError
from tfspike.evaluation import options as eval_options
from tfspike.models import variables
from tfspike.pretrained import cards as model_cards
from tfspike.runs import library, results, standing, workdir
from tfspike.runs import loading as run_loading
from tfspike.runs.checkpoints import Checkpoint
from tfspike.weights import FOLDER

_DRAWS = 3  # of random input


def noise_scores(model: Any, config: Config, info: Any) -> np.ndarray:
    """V_T / T `[classes]` of one image of noise under seed 0: a fingerprint, which other weights would not have."""
    shape = tuple(info.image_shape) if config.encoder != "none" else (model.timesteps, *info.image_shape)
    raw = np.random.PCG64(np.random.SeedSequence(0)).random_raw(int(np.prod(shape)))  # bits that no version changes
    pixels = (raw >> np.uint64(63 if info.event_based else 56)).astype(np.uint8).reshape(shape)
    scores, _ = model.observe(info.normalise(pixels[np.newaxis]), training=False, seed=0)
    return np.asarray(scores, np.float32)[0]


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """What `python -m tfspike.pretrained` packs.

    Raises:
      UserError: a value is illegal.
    """

    workdir: str = setting("", "Folder of the finished run.", group="What to pack", legal="the folder of a run",
                           path=True)
    data_dir: str | None = data_dir_setting("What to pack")
    name: str | None = setting(None, "Name of the data in the entry's name, <network>_<name>; none means the data "
                               "set's.", group="What to pack", legal="lower-case letters, digits and _",
                               check=lambda v: v.isidentifier() and v.isascii() and v == v.lower())
    half: bool = setting(False, "Round kernels to float16, for a file of half the size; the test is of what is stored.",
                         group="What to pack")
    images: int = setting(256, "Test images that energy is measured on: the first ones, or of data of your own evenly "
                               "spread ones.", group="How", **COUNT)
    machine: str | None = setting(None, "Processor and threads, for runs that did not note their machine.",
                                  group="The card", legal="text")
    title: str | None = setting(None, "Name of the data and what to cite, for data not known here.", group="The card",
                                legal="text")
    source: str | None = setting(None, "Address of the data, for data not known here.", group="The card", legal="text")
    licence: str | None = setting(None, "Licence of the data, for data not known here.", group="The card", legal="text")
    out: str | None = setting(None, "Folder to write into, a page of all cards (models.md) included; none means "
                              "tfspike/weights and docs/models.md of the source.", group="Output", legal="a folder",
                              path=True)
    verbose: bool = verbose_setting("Output")

    def __post_init__(self) -> None:
        if not self.workdir:
            raise UserError("--workdir is missing; give the folder of a finished run, as training named it.")
        normalise_all(self)


def pack(options: PackOptions, say: workdir.Say = print) -> library.Entry:
    """Evaluates a finished run, and writes its weights, its card and the page of all cards.

    Args:
      options: which run, and where to.
      say: takes lines of progress.

    Returns:
      The new entry; one of the same name is replaced.

    Raises:
      UserError: the run is not finished, is an ANN or a converted network, its data cannot be used or has no licence
        known here, or the files cannot be written.
    """
    config = config_lib.read_run(options.workdir)
    about = workdir.run_metadata(options.workdir)
    if not config.is_spiking or "converted" in about:
        raise UserError(f"Weights are packed of networks trained on spikes, and {options.workdir} holds "
                        f"{'a converted network' if config.is_spiking else 'an ANN'}; give another --workdir.")
    finished = results.read_finished(options.workdir, config)
    source = _source(options, config.dataset)
    folder, page = _targets(options)
    events = _with_seconds(results.read_events(os.path.join(options.workdir, results.METRICS)), config.batch_size)
    from tfspike import evaluation

    loaded, arrays = _best_weights(options, config, say)
    model, exact, info, checkpoint = loaded
    data_dir = options.data_dir or config.data_dir
    # As eval.py does it, batch size included: the parts of a test decide which noise an image meets.
    asked = eval_options.EvalOptions(workdir=options.workdir, data_dir=data_dir, seeds=_DRAWS)
    tested = evaluation.evaluate_run(asked, say, loaded)
    row = results.make_row(config, about, events, tested, finished, options.machine)
    say(f"counting operations on {min(options.images, tested['records'])} test images")
    energy = _energy(model, config, run_loading.load_data(config, info, "test", data_dir, model.timesteps), info,
                     options.images)
    split = about["data"].get("split") or {}
    card = {
        "date": row["date"], "commit": row["commit"], "seed": config.seed, "command": row["command"],
        "versions": about.get("versions") or {}, "machine": row["machine"], "hours": float(row["hours"]),
        "epochs": config.epochs, "train_records": split.get("num_train", info.num_train),
        "val_records": split.get("num_val", 0),
        "val_accuracy": float(row["val_accuracy"]) if row["val_accuracy"] else None, "step": checkpoint.step,
        "test_records": tested["records"], "test_accuracy": _percent(tested["test_accuracy"]),
        "test_sd": None if tested["test_accuracy_std"] is None else _percent(tested["test_accuracy_std"]),
        "draws": tested["seeds"], "test_accuracies": [_percent(share) for share in tested["test_accuracies"]],
        "timesteps": model.timesteps, "parameters": _trained_numbers(arrays),
        "kernels": "float16" if options.half else "float32",
        "neuron_spikes_per_image": round(tested["neuron_spikes_per_image"], 1), "energy": energy,
        "data": {"title": source.title, "source": source.address, "licence": source.licence},
        "caveats": model_cards.caveats(config, info, energy["images"])}
    name = f"{config.model}_{options.name or config.dataset}"
    fingerprint = {"seed": 0, "scores": [float(score) for score in noise_scores(model, exact, info)]}
    library.write(folder, name, arrays, exact, info, card, fingerprint)
    files.write_file(page, model_cards.page([library.read(each, folder)
                                             for each in library.available(folder)]))
    return library.read(name, folder)


def _best_weights(options: PackOptions, config: Config,
                  say: workdir.Say) -> tuple[tuple[Any, Config, Any, Checkpoint], files.Arrays]:
    """What `loading.load_run` returns of the best weights as they will be stored, in float32, and these."""
    from tfspike.engine.folding import fold

    info, checkpoint = run_loading.data_info(options.workdir), standing.open_checkpoint(options.workdir, say, "best")
    # in 16 bits another processor would round to other spikes, and so to other answers
    exact = dataclasses.replace(config, precision="float32")
    model = run_loading.build_model(exact, info)
    named = f"The checkpoint {checkpoint.path}"
    variables.restore(model.variables, checkpoint.arrays("model"), named)
    arrays = variables.collect(variables.learnt(model))
    if options.half:
        arrays = {name: library.rounded(array) for name, array in arrays.items()}
        variables.restore(variables.learnt(model), arrays, named)
    return (fold(model), exact, info, checkpoint), arrays


def _source(options: PackOptions, dataset: str) -> Source:
    """Where the data is from: the catalogue's word, or the flags' for data that it does not know."""
    known = facts(dataset).source
    if known is not None:
        return known
    if not (options.title and options.source and options.licence):
        raise UserError(f"Where {dataset} is from and under which licence is not known here; give --title, --source "
                        "and --licence of the data.")
    return Source(options.title, options.source, options.licence)


def _targets(options: PackOptions) -> tuple[str, str]:
    """Folder of the weights and file of the page."""
    if options.out is not None:
        return options.out, os.path.join(options.out, "models.md")
    docs = os.path.join(os.path.dirname(files.PACKAGE), "docs")
    if not os.path.isdir(docs):
        raise UserError("This tfspike is installed without its source, where weights belong; give an --out folder.")
    return FOLDER, os.path.join(docs, "models.md")


def _with_seconds(events: Sequence[Mapping[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Early runs noted images per second and not seconds per step, which hours are added up from."""
    found = []
    for event in events:
        speed = event.get("time/images_per_second")
        noted = {"time/seconds_per_step": batch_size / speed} if event["event"] == "train" and speed else {}
        found.append({**noted, **event})
    return found


def _trained_numbers(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.size for name, array in arrays.items() if "/moving_" not in name)


def _energy(model: Any, config: Config, test: Any, info: Any, images: int) -> dict[str, Any]:
    from tfspike import analysis
    from tfspike.analysis.energy import EnergyModel

    part = test.some(images)
    result = analysis.analyse(model, info.normalise(np.asarray(part.images)), part.labels,
                              min(config.batch_size, len(part)))
    return {**result.energy_record(EnergyModel()), "images": len(part)}


def _percent(share: float) -> float:
    return round(100 * share, 4)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 0, or 2 with one sentence on stderr for what the user can put right."""
    with flags.user_errors():
        options = flags.parse_as(PackOptions, argv, "python -m tfspike.pretrained --workdir=RUN [--flag=value ...]")
        output.start_tensorflow(options.verbose)
        entry = pack(options)
        if entry.card["commit"].endswith("+"):
            print("Warning: the source had been changed since its commit, so nobody can train this run again.",
                  file=sys.stderr)
        print(f"{entry.path}: {os.path.getsize(entry.path) / 1e6:.2f} MB, test accuracy "
              f"{model_cards.accuracy(entry.card)}")
        return 0
    return 2
