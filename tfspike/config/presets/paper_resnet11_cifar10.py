"""ResNet11 on CIFAR-10, the paper's best network.

    python train.py --preset=paper_resnet11_cifar10

Source: Lee et al. 2020, Front. Neurosci. 14:119, and the authors' public code for the schedule. The accuracy is
quoted as follow-up papers repeat it.
"""

from tfspike.config.presets.experiment import PAPER, Experiment

BATCH = 16

EXPERIMENT = Experiment(
    settings={
        **PAPER, "model": "resnet11", "dataset": "cifar10", "timesteps": 100, "batch_size": BATCH,
        "learning_rate": 0.0025 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 150, "lr_milestones": (70, 100, 125),
        "kappa": 1.0, "dropout": 0.25, "augment": True,
    },
    expected=90.95, ann=91.87, converted=91.65,
    measured=None,  # not yet measured
)
