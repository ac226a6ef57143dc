"""A first look at any network and data set: does it run, does the loss fall?

    python train.py --preset=quick --model=vgg9 --dataset=cifar10
"""

from tfspike.config.presets.experiment import Experiment

EXPERIMENT = Experiment(settings={"timesteps": 10, "epochs": 1, "steps_per_epoch": 20, "lr_milestones": ()})
