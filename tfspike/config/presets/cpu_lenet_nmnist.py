"""LeNet on N-MNIST on two CPU cores: steps of 12 ms, and 6 epochs of 125.

    python train.py --preset=cpu_lenet_nmnist

--data_dir names the folder of N-MNIST, with Train/ and Test/ in it (`tfspike.events`). On 1,000 records for training
and 100 for the test, with --epochs=30 --lr_milestones=20, four runs reached 81 to 95 % (results/results.csv).
"""

from tfspike.config.presets.experiment import CPU, Experiment

BATCH = 16  # at 64, with the same rate per record, the network falls silent for good

EXPERIMENT = Experiment(
    settings={
        **CPU, "model": "lenet", "dataset": "nmnist", "encoder": "none", "timesteps": 25, "batch_size": BATCH,
        "learning_rate": 0.0085 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 6, "lr_milestones": (4,),
        "kappa": 2.0, "dropout": 0.0,
    },
    measured=None,  # not yet measured
)
