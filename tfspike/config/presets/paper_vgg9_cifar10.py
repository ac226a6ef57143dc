"""VGG9 on CIFAR-10, the paper's plain network for natural images.

    python train.py --preset=paper_vgg9_cifar10

Source: Lee et al. 2020, Front. Neurosci. 14:119, and the authors' public code for the schedule. The accuracy is
quoted from secondary sources.
"""

from tfspike.config.presets.experiment import PAPER, Experiment

BATCH = 16

EXPERIMENT = Experiment(
    settings={
        **PAPER, "model": "vgg9", "dataset": "cifar10", "timesteps": 100, "batch_size": BATCH,
        "learning_rate": 0.0033 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 150, "lr_milestones": (70, 100, 125),
        "kappa": 2.0, "dropout": 0.2, "augment": True,
    },
    expected=90.45, ann=91.98, converted=92.01,
    measured=None,  # not yet measured
)
