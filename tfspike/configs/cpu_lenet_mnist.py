"""LeNet on MNIST on two CPU cores: the paper's network, window and learning rate, and 5 epochs of its 125.

    python train.py --preset=cpu_lenet_mnist

Three epochs in float32 at the recipe's constant rate test at 99.1 % (README.md); this preset itself has not been run.
"""

from tfspike.configs.experiment import CPU, Experiment

BATCH = 64

EXPERIMENT = Experiment(
    settings={
        **CPU, "model": "lenet", "dataset": "mnist", "encoder": "poisson", "timesteps": 50, "batch_size": BATCH,
        "learning_rate": 0.0085 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 5, "lr_milestones": (4,),
        "kappa": 2.0, "dropout": 0.0,
    },
    measured=None,  # not yet measured
)
