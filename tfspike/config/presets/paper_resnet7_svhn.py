"""ResNet7 on SVHN, cropped digits, trained with its extra digits.

    python train.py --preset=paper_resnet7_svhn

Source: Lee et al. 2020, Front. Neurosci. 14:119. No schedule for this row is known to us: that of ResNet11 is taken.
A digit must not be mirrored: no augmentation. Training has the 73,257 digits of `train` and the 531,131 easier ones
of `extra`; --noextra does without. The layout is partly from follow-up work and the accuracy is quoted from memory of
the paper: check both before relying on them.
"""

from tfspike.config.presets.experiment import PAPER, Experiment

BATCH = 16

EXPERIMENT = Experiment(
    settings={
        **PAPER, "model": "resnet7", "dataset": "svhn_cropped", "timesteps": 100, "batch_size": BATCH,
        "learning_rate": 0.0025 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 150, "lr_milestones": (70, 100, 125),
        "kappa": 1.0, "dropout": 0.25, "augment": False, "extra": True,
    },
    expected=96.21, ann=96.43, converted=96.40,
    measured=None,  # not yet measured
)
