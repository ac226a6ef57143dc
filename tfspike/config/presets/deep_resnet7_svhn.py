"""ResNet7 on SVHN the way of the deep networks: 12 epochs of four steps, without the extra digits.

    python train.py --preset=deep_resnet7_svhn

Not the paper's method, which is paper_resnet7_svhn and takes 150 epochs of 100 steps with the extra digits.
Measured on a subset of SVHN with a split of its own (docs/results.md), not to be compared with published figures.
"""

from tfspike.config.presets.experiment import DEEP, Experiment, Measured

EXPERIMENT = Experiment(
    settings={**DEEP, "model": "resnet7", "dataset": "svhn_cropped", "batch_size": 32, "epochs": 12, "augment": False},
    measured=Measured(accuracy=89.31, std=None, draws=1, date="2026-11-26", commit="4bcb8a1", seed=0, hours=0.17,
                      machine="AMD EPYC, 2 threads, beside other work"),
)
