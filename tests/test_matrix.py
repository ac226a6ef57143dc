"""The bare command learns on any image data set with every network: every network on data of every kind.

A cell trains with what `config.resolve` gives a pair that nobody measured, for 160 steps of 32 records at most (four for
every class where that is more, and eight for VGG16, whose layers nothing passes by; 64 of the large images; the recipe's
twenty epochs are longer), validated four times. It must not collapse, and of the distance from what the most frequent
class alone would give to 100 % it has to cover `COVERED` on validation records. That is 1.5 times chance for two classes
in balance, 5 times for ten, and more than 10 times for a hundred. On the full table a cell ends with the first validation
that does.
"""

import re

import numpy as np
import pytest

import kinds
from tfspike import config, datasets, training
from tfspike.variants import VARIANTS

COVERED = 0.5
QUICK = [*(("lenet", kind) for kind in kinds.SMALL), ("vgg5", "tiny")]
FITTING = [(network, kind) for network in VARIANTS for kind in kinds.KINDS
           if {"tiny": 8, "small_grey": 16, "dark": 28, "bright": 28}.get(kind, 32) >= VARIANTS[network].min_size]


class Enough(Exception):
    """The network has learnt what was asked for."""


def learn(network, kind, folder, monkeypatch, small=False):
    """Exit code, share of the distance covered, and what was said. On small images training goes on to its end."""
    data = kinds.load(kind, small)
    steps = 64 if kind == "large" else max(160, (8 if network == "vgg16" else 4) * len(data.class_names))
    monkeypatch.setattr(datasets, "load", lambda *args, **how: data)
    monkeypatch.setattr("tfspike.config.recipes.RECIPES", {})  # as if nothing had been measured
    made = config.resolve({"model": network, "dataset": data.name, "steps_per_epoch": steps // 4, "epochs": 4,
                           "tensorboard": False, "export": (), "workdir": str(folder), "checkpoint_every": 0})
    usual = np.bincount(data.labels).max() / len(data)
    said: list[str] = []
    covered = [-1.0]

    def say(line):
        said.append(line)
        validated = re.search(r"validation loss \S+  accuracy +([0-9.]+) %", line)
        if validated:
            covered.append((float(validated[1]) / 100 - usual) / (1 - usual))
            if covered[-1] >= COVERED and not small:
                raise Enough

    try:
        code = training.run(made, say=say)
    except Enough:
        code = 0
    return code, covered[-1], said


@pytest.mark.parametrize("network, kind", QUICK)
def test_it_learns(network, kind, tmp_path, monkeypatch):
    """On small images of the kind; on the whole table, and on these kinds in their own size, where it is asked for."""
    code, covered, said = learn(network, kind, tmp_path, monkeypatch, small=True)
    assert code == 0 and covered >= COVERED, said[-8:]


@pytest.mark.slow
@pytest.mark.parametrize("network, kind", [cell for cell in FITTING if cell not in QUICK or cell[1] != "tiny"])
def test_it_learns_everywhere(network, kind, tmp_path, monkeypatch):
    code, covered, said = learn(network, kind, tmp_path, monkeypatch)
    assert code == 0 and covered >= COVERED, said[-8:]


def test_every_network_is_tried_on_eight_kinds_at_least():
    for network in VARIANTS:
        assert sum(cell[0] == network for cell in FITTING) >= 7, network
