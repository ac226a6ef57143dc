"""VGG7 on SVHN the way of the deep networks: 12 epochs of four steps, without the extra digits.

    python train.py --preset=deep_vgg7_svhn

Not the paper's method, which is paper_vgg7_svhn and takes 150 epochs of 100 steps with the extra digits.
"""

from tfspike.configs.experiment import DEEP, Experiment

EXPERIMENT = Experiment(
    settings={**DEEP, "model": "vgg7", "dataset": "svhn_cropped", "batch_size": 32, "epochs": 12, "augment": False},
    measured=None,  # not yet measured
)
