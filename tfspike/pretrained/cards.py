"""Model cards of the trained weights: what a card holds, where known data comes from, and all cards as a page.

The cards are in the .json files of `tfspike/weights`; docs/models.md is made from them, never written by hand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tfspike.config.config import Config
from tfspike.datasets.catalogue import facts
from tfspike.output import counted
from tfspike.runs.library import Entry

CARD: dict[str, str] = {
    "date": "day on which training ended, UTC",
    "commit": "of the source that trained",
    "seed": "of weights, order, noise and dropout",
    "command": "that began the run, without paths",
    "versions": "of what computed",
    "machine": "processor, threads and GPUs that trained",
    "hours": "of training and validation",
    "epochs": "passes over the training data",
    "train_records": "records that weights were fitted to",
    "val_records": "records held out of the training data, on which the epoch was chosen; 0 for the last epoch",
    "val_accuracy": "best of all epochs, %; null without held-out records",
    "step": "training steps after which the weights were taken",
    "test_records": "records of the test",
    "test_accuracy": "mean over draws of the random input, %",
    "test_sd": "standard deviation over draws (n - 1), percentage points; null for one draw",
    "draws": "number of them",
    "test_accuracies": "of every draw, %",
    "timesteps": "T of training and test, steps",
    "parameters": "trained numbers",
    "kernels": "float32, or float16 where the file holds rounded kernels; the test is of what the file holds",
    "neuron_spikes_per_image": "spikes of all LIF and pooling neurons in a window, mean over test records and draws",
    "energy": "snn_pj_per_image and ann_pj_per_image, pJ, their constants, and on how many images they were measured",
    "data": "title, source and licence of the data",
    "caveats": "what the figures do not say",
}
"""`{field: what it holds}` of every card."""


def caveats(config: Config, info: Any, images: int) -> list[str]:
    """Sentences that a reader needs beside the figures.

    Args:
      config: of the run.
      info: its `datasets.DatasetInfo`.
      images: test images that energy was measured on.
    """
    found, known = [], facts(info.name)
    whole = (known.num_train + known.num_extra * config.extra, known.num_test)
    if known.num_train and (info.num_train, info.num_test) != whole:
        found.append(f"A subset of the data with a split of its own: {info.num_train:,} training and {info.num_test:,} "
                     f"test images in place of {whole[0]:,} and {whole[1]:,}. Its accuracy must not be compared with "
                     "published results on this data set.")
    if config.random_input:
        found.append("The input is random: accuracy is a mean over draws, whose spread says nothing about other seeds "
                     "of the training. One training was done.")
    else:
        found.append("One training was done; its seed's share in the accuracy is not known.")
    found.append(f"Energy is arithmetic alone (45 nm CMOS, 32-bit; memory is not counted), measured on "
                 f"{images:,} test images; that of the ANN is of the same layers, one pass.")
    return found


# ---- the page ----------------------------------------------------------------------------------------------------


def page(entries: Sequence[Entry]) -> str:
    """All cards as Markdown: a table, then a section for each."""
    lines = ["# Trained weights", "",
             "Made by `python -m tfspike.pretrained` from the cards in `tfspike/weights`; not to be edited by hand.",
             "",
             "```python",
             "import tfspike.pretrained", "",
             "tfspike.pretrained.available()                  # their names",
             "model, config, info, _ = tfspike.pretrained.load(NAME)      # for inference, normalisation folded",
             "```", "",
             "`python eval.py --weights=NAME --data_dir=DIR` gives the accuracies below again; `--predict=FILES` "
             "classifies images. `python train.py --init_from=NAME` begins a training with them, on data of any number "
             "of classes.", "",
             "| name | data | T | test accuracy | spikes per image | energy per image | of the ANN | file |",
             "|---|---|---|---|---|---|---|---|"]
    lines += [_row(entry) for entry in entries]
    for entry in entries:
        lines += ["", *_section(entry)]
    return "\n".join(lines) + "\n"


def _row(entry: Entry) -> str:
    card, energy = entry.card, entry.card["energy"]
    size = os.path.getsize(entry.path) / 1e6
    return (f"| {entry.name} | {_data(entry)} | {card['timesteps']} | {accuracy(card)} | "
            f"{card['neuron_spikes_per_image']:,.0f} | {_nanojoules(energy['snn_pj_per_image'])} | "
            f"{_nanojoules(energy['ann_pj_per_image'])} | {size:.1f} MB |")


def accuracy(card: dict[str, Any]) -> str:
    """Test accuracy with its spread, in words."""
    spread = "" if card["test_sd"] is None else f" (sd {card['test_sd']:.2f}, {card['draws']} draws)"
    return f"{card['test_accuracy']:.2f} %{spread}"


def _data(entry: Entry) -> str:
    part = facts(entry.info.name).num_test not in (0, entry.info.num_test)
    return entry.info.name + (", a subset" if part else "")


def _nanojoules(picojoules: float) -> str:
    return f"{picojoules / 1000:,.0f} nJ"


def _section(entry: Entry) -> list[str]:
    card, config, info = entry.card, entry.config, entry.info
    energy, data = card["energy"], card["data"]
    held_out = "of the last epoch" if card["val_accuracy"] is None else \
        f"of the best epoch on {card['val_records']:,} held-out records ({card['val_accuracy']:.2f} %)"
    neurons = f"leak {config.leak:g}, threshold {config.threshold:g}, gradient {config.gradient}, surrogate " \
              f"{config.surrogate}, normalisation {config.norm}, pooling {config.pooling}" \
              + (f", shortcut {config.shortcut}" if config.shortcut != "spikes" else "")
    kernels = "" if card["kernels"] == "float32" else f", kernels rounded to {card['kernels']}"
    lines = {
        "network": f"{config.model} on {' x '.join(map(str, info.image_shape))}, {card['parameters']:,} parameters"
                   f"{kernels}, T = {card['timesteps']}, input {config.encoder}; {neurons}",
        "test": f"{accuracy(card)} of {card['test_records']:,} records",
        "weights": f"after {card['step']:,} steps, {held_out}",
        "training": f"{counted(card['epochs'], 'epoch')} over {card['train_records']:,} records, seed {card['seed']}, "
                    f"{card['hours']:.2f} hours on {card['machine']}, {card['date']}",
        "spikes": f"{card['neuron_spikes_per_image']:,.0f} per image, of all neurons",
        "energy": f"{_nanojoules(energy['snn_pj_per_image'])} per image, {_nanojoules(energy['ann_pj_per_image'])} for "
                  f"the ANN of the same layers ({energy['images']:,} test images)",
        "data": f"{data['title']}, <{data['source']}>",
        "licence of the data": data["licence"],
        "source": f"commit {card['commit'][:12]}, "
                  + ", ".join(f"{name} {version}" for name, version in card["versions"].items()),
    }
    return [f"## {entry.name}", "", *(f"- **{name}:** {text}" for name, text in lines.items()), "",
            "```bash", card["command"], f"python eval.py --weights={entry.name} --data_dir=DIR", "```", "",
            "```python",
            f"model = tfspike.pretrained.load({entry.name!r}, fold=False)[0]", "```", "",
            *(f"- {text}" for text in card["caveats"])]
