"""LeNet on MNIST, the first row of the paper's table.

    python train.py --preset=paper_lenet_mnist

Source: Lee et al. 2020, Front. Neurosci. 14:119, and the authors' public code for the schedule. The paper has T = 50,
the authors' code T = 100; this is the paper's. The accuracy is quoted as follow-up papers repeat it.
"""

from tfspike.config.presets.experiment import PAPER, Experiment

BATCH = 64

EXPERIMENT = Experiment(
    settings={
        **PAPER, "model": "lenet", "dataset": "mnist", "timesteps": 50, "batch_size": BATCH,
        "learning_rate": 0.0085 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 125, "lr_milestones": (75,),
        "kappa": 2.0, "dropout": 0.0, "augment": False,
    },
    expected=99.59, ann=99.57, converted=99.59,
    measured=None,  # not yet measured
)
