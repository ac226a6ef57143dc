"""VGG9 on CIFAR-10 the way of the deep networks: 8 epochs of four steps, on two CPU cores.

    python train.py --preset=deep_vgg9_cifar10

Not the paper's method, which is paper_vgg9_cifar10 and takes 150 epochs of 100 steps. The hidden layer has 64 neurons
in place of 1024, so that the trained weights stay below 5 MB.
"""

from tfspike.config.presets.experiment import DEEP, Experiment, Measured

EXPERIMENT = Experiment(
    settings={
        **DEEP, "model": "vgg9", "dataset": "cifar10", "hidden": 64, "batch_size": 64, "epochs": 8, "augment": True,
    },
    measured=Measured(accuracy=85.36, std=None, draws=1, date="2026-11-26", commit="763c97f", seed=0, hours=1.01,
                      machine="AMD EPYC, 2 threads, beside other work"),
)
