"""ResNet9 on CIFAR-10 the way of the deep networks: 6 epochs of four steps, on two CPU cores.

    python train.py --preset=deep_resnet9_cifar10

Not the paper's method, which is paper_resnet9_cifar10 and takes 150 epochs of 100 steps. The paper's widths but for the
hidden layer, which has 64 neurons in place of 1024. An epoch costs about half as much again as one of VGG9.
"""

from tfspike.configs.experiment import DEEP, Experiment

EXPERIMENT = Experiment(
    settings={
        **DEEP, "model": "resnet9", "dataset": "cifar10", "hidden": 64, "batch_size": 64, "epochs": 6, "augment": True,
    },
    measured=None,  # not yet measured
)
