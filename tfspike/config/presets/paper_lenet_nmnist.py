"""LeNet on N-MNIST: MNIST as an event camera saw it, 34x34 pixels of two polarities.

    python train.py --preset=paper_lenet_nmnist

Source: Lee et al. 2020, Front. Neurosci. 14:119. Events are spikes already, so that there is no encoder. N-MNIST
cannot be downloaded by program: --data_dir names its folder, with Train/ and Test/ in it (`tfspike.events`). No
schedule for this row is known to us: that of MNIST is taken, and T = 100, the authors' default, which makes steps of
3 ms. The accuracy is quoted as follow-up papers repeat it. On 900 records of N-MNIST and T = 25 the gradient "rate"
fell silent at this batch and learning rate, and learned at batches of 16 (`cpu_lenet_nmnist`); "event" was not tried.
"""

from tfspike.config.presets.experiment import PAPER, Experiment

BATCH = 64

EXPERIMENT = Experiment(
    settings={
        **PAPER, "model": "lenet", "dataset": "nmnist", "timesteps": 100, "batch_size": BATCH,
        "learning_rate": 0.0085 * BATCH, "weight_decay": 5e-4 / BATCH, "epochs": 125, "lr_milestones": (75,),
        "kappa": 2.0, "dropout": 0.0, "augment": False, "encoder": "none",
    },
    expected=99.09,
    measured=None,  # not yet measured
)
