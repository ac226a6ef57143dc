"""ResNet7 on SVHN the way of the deep networks: 12 epochs of four steps, without the extra digits.

    python train.py --preset=deep_resnet7_svhn

Not the paper's method, which is paper_resnet7_svhn and takes 150 epochs of 100 steps with the extra digits.
Measured on a subset of SVHN with a split of its own (docs/results.md), not to be compared with published figures.
"""

from tfspike.configs.experiment import DEEP, Experiment

EXPERIMENT = Experiment(
    settings={**DEEP, "model": "resnet7", "dataset": "svhn_cropped", "batch_size": 32, "epochs": 12, "augment": False},
    measured=None,  # not yet measured
)
