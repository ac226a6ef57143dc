"""VGG7 on SVHN the way of the deep networks: 12 epochs of four steps, without the extra digits.

    python train.py --preset=deep_vgg7_svhn

Not the paper's method, which is paper_vgg7_svhn and takes 150 epochs of 100 steps with the extra digits.
Measured on a subset of SVHN with a split of its own (docs/results.md), not to be compared with published figures.
"""

from tfspike.config.presets.experiment import DEEP, Experiment, Measured

EXPERIMENT = Experiment(
    settings={**DEEP, "model": "vgg7", "dataset": "svhn_cropped", "batch_size": 32, "epochs": 12, "augment": False},
    measured=Measured(accuracy=91.20, std=None, draws=1, date="2026-11-26", commit="b905ed7", seed=0, hours=0.15,
                      machine="AMD EPYC, 2 threads"),
)
