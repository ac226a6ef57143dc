"""VGG5 on SVHN on two CPU cores: a short window, no extra digits, and 2 epochs.

    python train.py --preset=cpu_vgg5_svhn

A third of VGG9's multiply-accumulates, a quarter of its steps. The learning rate is VGG9's as it stands, 0.0033 x 16,
though the batch is twice as large. On a subset of SVHN an epoch is shorter, and more of them are needed: 18
(--epochs=18 --lr_milestones=13) reached 85.5 % on one of 8,287 images (docs/results.md).
"""

from tfspike.config.presets.experiment import CPU, Experiment

BATCH = 32

EXPERIMENT = Experiment(
    settings={
        **CPU, "model": "vgg5", "dataset": "svhn_cropped", "encoder": "poisson", "timesteps": 25, "batch_size": BATCH,
        "learning_rate": 0.0033 * 16, "weight_decay": 5e-4 / BATCH, "epochs": 2, "lr_milestones": (1,),
        "kappa": 2.0, "dropout": 0.2,
    },
    measured=None,  # not yet measured
)
