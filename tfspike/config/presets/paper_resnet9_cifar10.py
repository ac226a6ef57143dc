"""ResNet9 on CIFAR-10.

    python train.py --preset=paper_resnet9_cifar10

Source: Lee et al. 2020, Front. Neurosci. 14:119. No learning rate is given for this network: that of ResNet11 is
taken. The layout is from memory of the paper; the accuracy is quoted as follow-up papers repeat it.
"""

from tfspike.config.presets.experiment import PAPER, Experiment

BATCH = 16

EXPERIMENT = Experiment(
    settings={
        **PAPER, "model": "resnet9", "dataset": "cifar10", "timesteps": 100, "batch_size": BATCH,
        "learning_rate": 0.0025 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 150, "lr_milestones": (70, 100, 125),
        "kappa": 1.0, "dropout": 0.25, "augment": True,
    },
    expected=90.35, ann=91.85, converted=91.59,
    measured=None,  # not yet measured
)
