"""VGG5 on CIFAR-10 on two CPU cores: a short window, and 3 epochs.

    python train.py --preset=cpu_vgg5_cifar10

A third of VGG9's multiply-accumulates, a quarter of its steps. The learning rate is VGG9's as it stands, 0.0033 x 16,
though the batch is twice as large. No crops and flips: in three epochs there is nothing to overfit.
"""

from tfspike.config.presets.experiment import CPU, Experiment, Measured

BATCH = 32

EXPERIMENT = Experiment(
    settings={
        **CPU, "model": "vgg5", "dataset": "cifar10", "encoder": "poisson", "timesteps": 25, "batch_size": BATCH,
        "learning_rate": 0.0033 * 16, "weight_decay": 5e-4 / BATCH, "epochs": 3, "lr_milestones": (2,),
        "kappa": 2.0, "dropout": 0.2,
    },
    measured=Measured(accuracy=59.98, std=0.16, draws=3, date="2026-11-26", commit="1ae552b", seed=0, hours=0.41,
                      machine="AMD EPYC, 2 threads, beside other work"),
)
