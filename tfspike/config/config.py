"""The configuration of a run: every setting defined once, checked early, and the same for flags, files and resume.

`Config` holds what makes the experiment, `RunOptions` how this one command runs it. Nothing here imports TensorFlow, so
a wrong setting is refused at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from tfspike import weights
from tfspike.checks import may_adapt
from tfspike.config import methods, presets
from tfspike.config.settings import closest, normalise_all, plain, setting, shown, verbose_setting
from tfspike.datasets import catalogue
from tfspike.errors import UserError
from tfspike.variants import SHORTCUTS, VARIANTS

DATASETS, DATASET_ALIASES = catalogue.KNOWN, catalogue.ALIASES
EVENT_DATASETS, EXTRA_DATASETS, OWN_DATASETS = catalogue.WITH_EVENTS, catalogue.WITH_EXTRA, catalogue.OWN
SURROGATES = ("leak_aware", "rectangular", "triangular", "arctan", "sigmoid", "tandem", "tandem_clipped")
TANDEM = ("tandem", "tandem_clipped")
WITHOUT_WIDTH = ("leak_aware", *TANDEM)
LEARNABLE = ("leak", "threshold")
RESUME_WORDS = ("auto", "never", "must")
NEURONS = ("lif", "relu")
# Settings that only spiking networks have. A ReLU network keeps their defaults, whatever recipes and presets say.
SPIKING_ONLY = ("timesteps", "timesteps_schedule", "gradient", "encoder", "earliest", "leak", "threshold",
                "target_rate", "surrogate", "surrogate_width", "credit", "reset", "start", "running_start", "feedback",
                "learn", "homeostasis", "readout", "pooling", "spike_penalty", "kernel")
_TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*([/:.][a-z0-9_]+)*")
_LARGEST_INT = 2**31 - 1  # TensorFlow counts steps and seeds in int32


def _at_least(bound: int) -> dict[str, Any]:
    return {"legal": f"a whole number from {bound} to {_LARGEST_INT}", "check": lambda v: bound <= v <= _LARGEST_INT}


# Within what float32 holds, with room for products: beyond it, numbers would be 0 or infinite where they are used.
_POSITIVE: dict[str, Any] = {"legal": "a number above 0, from 1e-30 to 1e30", "check": lambda v: 1e-30 <= v <= 1e30}
_NOT_NEGATIVE: dict[str, Any] = {"legal": "a number of at least 0, up to 1e30", "check": lambda v: 0 <= v <= 1e30}
_PIXELS: dict[str, Any] = {"legal": "whole numbers from 1 to 4096", "check": lambda v: 1 <= v <= 4096}
_SHARE: dict[str, Any] = {"legal": "a number from 0 up to, but not including, 1", "check": lambda v: 0 <= v < 1}


def pairs(schedule: Sequence[str]) -> list[tuple[int, int]]:
    """`[(steps, epochs), ...]` of a --timesteps_schedule."""
    return [(int(steps), int(epochs)) for steps, epochs in (part.split(":") for part in schedule)]


@dataclasses.dataclass(frozen=True)
class Config:
    """What makes an experiment. Frozen, checked on construction; see `--help` for every field.

    Raises:
      UserError: a value is illegal or contradicts another one.
    """

    model: str = setting("lenet", "The network.", group="What to train", choices=VARIANTS)
    dataset: str = setting(
        "mnist_subset", f"The data: your own ({', '.join(OWN_DATASETS)}), "
        f"{', '.join(name for name in DATASETS if name not in (*OWN_DATASETS, *DATASET_ALIASES.values()))}, "
        f"{', '.join(DATASET_ALIASES)}, or any TFDS image-classification set.",
        group="What to train", legal="the name of a data set: small letters, digits and _ / : .",
        check=lambda v: len(v) <= 200 and _TFDS_NAME.fullmatch(v) is not None, aliases=DATASET_ALIASES)
    data_dir: str | None = setting(None, "Folder of the prepared data sets, none for TFDS' own, with download; of your "
                                   "own data the folder with train/CLASS/*.png or CLASS/*.png, or the .npz file.",
                                   group="What to train", legal="a folder, or an .npz file", path=True,
                                   experiment=False)
    image_size: tuple[int, ...] = setting(
        (), "Height and width that pictures of --dataset=folder are scaled to, and the pixels of --dataset=recordings "
        "merged to, or one number for both; none means that they all have one size.", group="What to train", **_PIXELS)
    sensor_size: tuple[int, ...] = setting(
        (), "Height and width of the sensor that --dataset=recordings are of, or one number for both.",
        group="What to train", **_PIXELS)
    window_ms: float | None = setting(None, "How much of each of --dataset=recordings is used, from its first event "
                                      "on, in milliseconds.", group="What to train", legal="a number from .001 to 1e9",
                                      check=lambda v: 0.001 <= v <= 1e9)
    extra: bool = setting(False, "Train on the split extra as well, which SVHN has.", group="What to train")
    workdir: str | None = setting(None, "Folder of the run; none means one under runs/ that follows from the settings.",
                                  group="What to train", legal="a folder", path=True, experiment=False)

    neuron: str = setting("lif", "Spiking neurons (lif), or the same network as an ordinary ANN (relu), without time.",
                          group="Network", choices=NEURONS, own="a subclass of tfspike.LIF")
    timesteps: int = setting(50, "Length of the window, in steps.", group="Network", **_at_least(1))
    timesteps_schedule: tuple[str, ...] = setting(
        (), "Windows of the epochs in order, T:epochs, e.g. 1:16,4:4, as updates over a short window cost less; epochs "
        "that it leaves have --timesteps.", group="Network", legal="pairs T:epochs of whole numbers from 1 to 99999",
        check=lambda v: re.fullmatch("[1-9][0-9]{0,4}:[1-9][0-9]{0,4}", v) is not None)
    gradient: str = setting("rate", "The gradient: resolved in time (event), over the window's rates (rate), or "
                            "forward in time (eprop).", group="Network", choices=("event", "rate", "eprop"))
    feedback: str = setting("symmetric", "How the gradient eprop tells a layer of the error: through the weights "
                            "behind it (symmetric), or fixed random ones.", group="Network",
                            choices=("symmetric", "random"))
    surrogate: str = setting("leak_aware", "What stands for the derivative of a spike: the paper's slope (leak_aware), "
                             "a function of the membrane potential, or a ReLU's (tandem).", group="Network",
                             choices=SURROGATES, own="a function h(x)")
    surrogate_width: float = setting(1.0, "Stretches a surrogate; the leak-aware slope and tandem have no width.",
                                     group="Network", **_POSITIVE)
    credit: str = setting("mean", "How the gradient rate takes a surrogate: its mean over the window, or with what a "
                          "lasting drive does to the membrane in time.", group="Network", choices=("mean", "time"))
    norm: str = setting("none", "Normalisation of currents over time and batch (tdbn), which deep networks need.",
                        group="Network", choices=("none", "tdbn"))
    pooling: str = setting("neuron", "What follows an average pooling: neurons, or nothing (average), for windows of "
                           "few steps.", group="Network", choices=("neuron", "average"))
    shortcut: str = setting("spikes", "What passes the neurons of a residual block: the spikes in front of it, or "
                            "currents, with which many layers learn.", group="Network", choices=SHORTCUTS)
    encoder: str = setting("poisson", "How pixels become spikes; none takes spike trains as they are.",
                           group="Network", choices=("poisson", "direct", "latency", "none"))
    earliest: str = setting("one", "Which pixels spike at the first step under --encoder=latency: normalised ones of "
                            "1, which digits never are, or the largest that the data can have.", group="Network",
                            choices=("one", "largest"))
    leak: float = setting(0.99, "Leak factor (membrane decay): what a neuron keeps of its membrane potential "
                          "per step; 1.0 means no leak.", group="Network",
                          legal="a number above 0 and up to 1", check=lambda v: 0 < v <= 1)
    threshold: float = setting(1.0, "Threshold of the LIF neurons; pooling neurons keep 0.75.", group="Network",
                               **_POSITIVE)
    reset: str = setting("zero", "What a spike leaves of the membrane potential: zero, what is above the threshold "
                         "(subtract), or a neuron that fires no more in this window (silent).", group="Network",
                         choices=("zero", "subtract", "silent"))
    readout: str = setting("membrane", "What the answer is: the output neurons' membrane potentials, or which of them "
                           "fires first.", group="Network", choices=("membrane", "first"))
    start: float = setting(0.0, "Share of the threshold that membranes begin a window with.", group="Network", **_SHARE)
    levels: int = setting(0, "With --neuron=relu: ReLUs of so many steps up to a learnt ceiling, which spiking neurons "
                          "compute in as many time steps (Bu et al. 2022); 0 for plain ones.", group="Network",
                          **_at_least(0))
    running_start: bool = setting(False, "Let membranes begin where those that fired in earlier windows ended, on "
                                  "average.", group="Network")
    learn: tuple[str, ...] = setting(
        (), "What every layer of LIF neurons learns besides its weights, from --leak and --threshold on.",
        group="Network", choices=LEARNABLE)
    homeostasis: float = setting(0.0, "How fast thresholds adapt in training until every channel fires about as often, "
                                 "such as .01; 0 keeps them.", group="Network", **_SHARE)
    hidden: int | None = setting(None, "Neurons of the hidden dense layer, 0 for no such layer; none means the "
                                 "network's own.", group="Network", **_at_least(0))
    dropout: float | None = setting(None, "Share of neurons silenced for a window; none means the network's own.",
                                    group="Network", **_SHARE)
    init: str | None = setting(None,
                               "First weights: normal, or scaled until every layer fires at --target_rate (rate), "
                               "as those of an ANN in --init_from are; none means the network's own.",
                               group="Network", choices=("normal", "rate"))
    kappa: float | None = setting(None, "Weights start with standard deviation sqrt(kappa / fan_in); none means the "
                                  "network's own.", group="Network", **_POSITIVE)
    target_rate: float = setting(0.1, "Mean firing rate that --init=rate aims at, in spikes per step.", group="Network",
                                 legal="a number above 0 and below .5", check=lambda v: 0 < v < 0.5)

    epochs: int = setting(10, "Passes over the training data; a run can be continued with more, but for "
                          "--lr_schedule=cosine.", group="Training",
                          experiment=False, **_at_least(1))
    steps_per_epoch: int | None = setting(None, "Steps that count as an epoch; none means all of the training data.",
                                          group="Training", **_at_least(1))
    min_steps_per_epoch: int = setting(0, "Least steps of an epoch: fewer training data count several times.",
                                       group="Training", **_at_least(0))
    batch_size: int = setting(32, "Images per step, over all devices.", group="Training", **_at_least(1))
    loss: str = setting("squared", "What is minimised: the squared error of the scores, or their cross entropy.",
                        group="Training", choices=("squared", "cross_entropy"))
    label_smoothing: float = setting(0.0, "Share of the target that is spread over all classes.", group="Training",
                                     **_SHARE)
    spike_penalty: float = setting(0.0, "Added to the loss: this times the mean firing rate of all spiking neurons, in "
                                   "spikes per neuron and step. More of it, fewer spikes.", group="Training",
                                   **_NOT_NEGATIVE)
    learning_rate: float = setting(0.1, "For the loss summed over classes and averaged over the batch.",
                                   group="Training", **_POSITIVE)
    lr_schedule: str = setting("milestones", "How the learning rate falls: at --lr_milestones, or to 0 over all epochs "
                               "(cosine).", group="Training", choices=("milestones", "cosine"))
    warmup_epochs: int = setting(0, "Epochs over which the learning rate rises from 0.", group="Training",
                                 **_at_least(0))
    lr_milestones: tuple[int, ...] = setting((), "Finished epochs after which the learning rate is multiplied by "
                                             "--lr_factor.", group="Training", **_at_least(1))
    lr_factor: float = setting(0.2, "What a milestone multiplies the learning rate by.", group="Training", **_POSITIVE)
    optimizer: str = setting("sgd", "The optimiser; sgd has no momentum.", group="Training",
                             choices=("sgd", "adam", "adamw"))
    weight_decay: float = setting(0.0, "L2 in the gradient (sgd, adam) or decoupled (adamw).", group="Training",
                                  **_NOT_NEGATIVE)
    clip_norm: float = setting(0.0, "Largest global norm of the gradient; 0 turns clipping off.", group="Training",
                               **_NOT_NEGATIVE)
    val_fraction: float = setting(0.1, "Share of the training data held out for validation.", group="Training",
                                  **_SHARE)
    augment: bool | None = setting(None, "Random crops, and flips but of digits; none means on for CIFAR only.",
                                   group="Training")
    on_collapse: str = setting("stop", "When no gradient reaches any weight any more: stop with exit code 4, or "
                               "continue.", group="Training", experiment=False, choices=("stop", "continue"))

    seed: int = setting(0, "Seed of weights, order, noise and dropout.", group="Machine", **_at_least(0))
    precision: str = setting("float32", "Arithmetic of the synapses; membrane potentials are always float32.",
                             group="Machine", choices=("float32", "mixed_bfloat16"))
    kernel: str = setting("auto", "How synapses are computed: dense convolutions, or on CPUs weights added where "
                          "spikes are (events), in a time that follows the spikes; auto measures both when a run "
                          "begins.", group="Machine",
                          choices=("auto", "dense", "events"))
    strategy: str = setting("auto", "Devices: all of this host (auto), one, mirrored or multi_worker.", group="Machine",
                            choices=("auto", "one", "mirrored", "multi_worker"))
    jit: str = setting("auto", "Compile whole steps with XLA: on, off, or where one GPU trains (auto).",
                       group="Machine", choices=("auto", "on", "off"))
    deterministic: bool = setting(False, "Bit-identical runs also where that costs speed.", group="Machine")

    checkpoint_every: int = setting(0, "Steps between checkpoints; 0 means the end of each epoch.", group="Output",
                                    experiment=False, **_at_least(0))
    keep_checkpoints: int = setting(3, "Newest checkpoints that are kept.", group="Output", experiment=False,
                                    **_at_least(1))
    log_every: int = setting(50, "Steps between lines of progress.", group="Output", experiment=False, **_at_least(1))
    tensorboard: bool = setting(True, "Write TensorBoard logs.", group="Output", experiment=False)
    export: tuple[str, ...] = setting(("saved_model",), "Formats written at the end.", group="Output", experiment=False,
                                      choices=("saved_model", "litert", "nir", "keras", "onnx", "none"))
    profile: bool = setting(False, "Profile steps 4 to 8 of this command for TensorBoard.", group="Output",
                            experiment=False)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every field and brings it into its one form; runs on construction.

        Raises:
          UserError: naming the flag, what is legal, what was received and what to do.
        """
        normalise_all(self)
        self._validate_learning_rate()
        self._validate_surrogate()
        self._validate_neurons()
        self._validate_learn()
        if self.jit == "on" and self.kernel == "events":
            raise UserError("--jit=on compiles whole steps, which --kernel=events leaves for code of its own; give "
                            "only one of them.")
        self._validate_schedule()
        if self.shortcut != "spikes" and not VARIANTS[self.model].is_residual:
            raise UserError(f"--shortcut={self.shortcut} is of residual blocks, and {self.model} has none; leave it "
                            "out, or take a residual network.")
        if self.norm != "none" and self.init == "rate":
            raise UserError(f"--init=rate scales weights, which --norm={self.norm} undoes; use "
                            "--init=normal or --norm=none.")
        if len(set(self.export)) < len(self.export) or ("none" in self.export and len(self.export) > 1):
            raise UserError(f"--export takes each format once, and none only alone; received {','.join(self.export)}.")
        if self.export == ("none",):
            object.__setattr__(self, "export", ())
        if not self.is_spiking:
            self._validate_relu()
        elif self.levels:
            raise UserError(f"--levels={self.levels} is for ReLUs, and --neuron={self.neuron} has none; leave it out, "
                            "or train an ANN to convert with --neuron=relu.")
        self._validate_data()
        self._validate_size()

    def _validate_learning_rate(self) -> None:
        if any(a >= b for a, b in zip(self.lr_milestones, self.lr_milestones[1:])):
            raise UserError(f"--lr_milestones must increase; received {shown(self.lr_milestones)}. "
                            "Give each epoch once, the earliest first.")
        if self.lr_schedule == "cosine" and self.lr_milestones:
            raise UserError("--lr_milestones belong to --lr_schedule=milestones; received --lr_schedule=cosine and "
                            f"{shown(self.lr_milestones)}. Leave one of them out, e.g. with --lr_milestones=none.")

    def _validate_surrogate(self) -> None:
        """Refuses a gradient that is not defined for these neurons, and a width of what has none."""
        if self.surrogate in WITHOUT_WIDTH and self.surrogate_width != 1.0:
            raise UserError(f"--surrogate_width={self.surrogate_width:g} stretches a surrogate, and "
                            f"--surrogate={self.surrogate} is none; leave it out or give e.g. --surrogate=arctan.")
        if self.surrogate in TANDEM and (self.gradient, self.leak, self.reset, self.start, self.pooling) != (
                "rate", 1.0, "subtract", 0.0, "average"):
            raise UserError(f"--surrogate={self.surrogate} is of neurons that lose nothing, under one gradient: give "
                            "--gradient=rate --leak=1 --reset=subtract --start=0 --pooling=average with it, or "
                            "--method=tandem.")
        if self.reset == "subtract" and self.gradient == "event" and self.surrogate == "leak_aware":
            raise UserError("--gradient=event with the leak-aware slope credits an input to the next spike, and the "
                            "reset to 0 ends its credit; with --reset=subtract give --gradient=rate or e.g. "
                            "--surrogate=arctan.")
        if self.credit == "time" and (self.gradient != "rate" or self.surrogate in WITHOUT_WIDTH):
            raise UserError("--credit=time is of --gradient=rate with a surrogate; received "
                            f"--gradient={self.gradient} and --surrogate={self.surrogate}. Leave it out, or give e.g. "
                            "--surrogate=arctan.")
        if self.gradient == "eprop" and (self.surrogate in WITHOUT_WIDTH or (self.reset, self.norm) != (
                "subtract", "none")):
            raise UserError("--gradient=eprop takes a surrogate such as --surrogate=triangular, --reset=subtract and "
                            "--norm=none; or give --method=eprop.")
        if self.feedback != "symmetric" and self.gradient != "eprop":
            raise UserError(f"--feedback={self.feedback} is of --gradient=eprop; received --gradient={self.gradient}. "
                            "Leave it out, or give --method=eprop.")

    def _validate_neurons(self) -> None:
        """Refuses options of neurons, input and readout that say nothing together."""
        if self.readout == "first" and (self.gradient, self.reset) != ("event", "silent"):
            raise UserError("--readout=first is of neurons that fire once; give --gradient=event --reset=silent with "
                            "it, or --method=once.")
        if self.earliest != "one" and self.encoder != "latency":
            raise UserError(f"--earliest={self.earliest} is of --encoder=latency; received --encoder={self.encoder}. "
                            "Leave it out.")
        if self.running_start and (self.reset == "silent" or self.surrogate in TANDEM):
            raise UserError("--running_start is of membranes that go on after a spike and may begin anywhere; received "
                            f"--reset={self.reset} and --surrogate={self.surrogate}. Leave it out.")
        if self.homeostasis and not may_adapt(self.learn, self.start, self.running_start, self.gradient):
            raise UserError(f"--homeostasis={self.homeostasis:g} is of neurons that learn no constants and begin at 0, "
                            "with --gradient=event or rate; leave out --learn, --start, --running_start and "
                            "--gradient=eprop, or it.")

    def _validate_data(self) -> None:
        """Refuses what the data set has not."""
        if self.dataset in EVENT_DATASETS and self.encoder != "none":
            raise UserError(f"--encoder={self.encoder} codes pixels, but {self.dataset} holds spikes; "
                            "use --encoder=none.")
        if self.dataset in EVENT_DATASETS and self.augment:
            raise UserError(f"--augment crops images, but {self.dataset} holds events; use --noaugment.")
        if self.encoder == "none" and self.dataset in DATASETS and self.dataset not in EVENT_DATASETS:
            raise UserError(f"--encoder=none takes spike trains, but {self.dataset} holds images; "
                            "use --encoder=poisson, direct or latency.")
        if self.extra and self.dataset in DATASETS and self.dataset not in EXTRA_DATASETS:
            raise UserError(f"--extra adds the split extra, which {', '.join(EXTRA_DATASETS)} has and {self.dataset} "
                            "has not; use --noextra.")

    def _validate_learn(self) -> None:
        """Brings what is learnt into its one form, each once and in one order."""
        object.__setattr__(self, "learn", tuple(name for name in LEARNABLE if name in self.learn))
        if self.learn and (self.surrogate in WITHOUT_WIDTH or self.start != 0.0 or self.reset == "silent"
                           or (self.gradient, self.credit) not in (("event", "mean"), ("rate", "time"))):
            raise UserError(f"--learn={plain(self.learn)} needs what passes gradient to constants: a surrogate such as "
                            "--surrogate=triangular, --start=0, a --reset that is not silent, and --gradient=event or "
                            "--credit=time; or give --method=diet.")

    def _validate_size(self) -> None:
        """Brings sizes into their one form, height and width, and asks for those of a sensor."""
        if self.image_size and self.dataset not in ("folder", "recordings"):
            raise UserError(f"--image_size={plain(self.image_size)} scales the pictures of --dataset=folder, and "
                            f"{self.dataset} has images of one size; leave it out.")
        for name in ("image_size", "sensor_size"):
            size = getattr(self, name)
            if len(size) > 2:
                raise UserError(f"--{name} takes height and width, or one number for both; received {plain(size)}.")
            if len(size) == 1:
                object.__setattr__(self, name, size * 2)
        for name in ("sensor_size", "window_ms"):
            given = getattr(self, name) not in ((), None)
            if given and self.dataset != "recordings":
                raise UserError(f"--{name}={plain(getattr(self, name))} is of --dataset=recordings; received "
                                f"--dataset={self.dataset}. Leave it out.")
            if not given and self.dataset == "recordings":
                raise UserError("--dataset=recordings needs --sensor_size=HEIGHT,WIDTH in pixels and --window_ms, how "
                                f"much of each recording is used; give --{name}.")

    def _validate_schedule(self) -> None:
        """Brings the schedule into its one form: without what --timesteps says of the last epochs anyway."""
        asked, planned = plain(self.timesteps_schedule), pairs(self.timesteps_schedule)
        if not planned:
            return
        if self.dataset in EVENT_DATASETS or self.encoder == "none":
            raise UserError(f"--timesteps_schedule={asked} needs images, which are coded anew for every window; spike "
                            "trains come with theirs. Leave it out.")
        if sum(epochs for _, epochs in planned) > self.epochs:
            raise UserError(f"--timesteps_schedule={asked} has more than the {self.epochs} of --epochs; give as many.")
        while planned and planned[-1][0] == self.timesteps:
            planned.pop()
        if sum(epochs for _, epochs in planned) == self.epochs:
            raise UserError(f"--timesteps_schedule={asked} leaves none of --epochs={self.epochs} to the "
                            f"network's own window, --timesteps={self.timesteps}; end it with "
                            f"{self.timesteps}:EPOCHS.")
        object.__setattr__(self, "timesteps_schedule", tuple(f"{steps}:{epochs}" for steps, epochs in planned))

    def _validate_relu(self) -> None:
        """Refuses what an ANN cannot have; a setting that it ignores would be believed to have mattered."""
        if self.dataset in EVENT_DATASETS:
            raise UserError(f"--neuron=relu takes images, but {self.dataset} holds spike trains; use --neuron=lif.")
        for name in SPIKING_ONLY:
            if getattr(self, name) != FIELDS[name].default:
                raise UserError(f"--{name}={plain(getattr(self, name))} is for spiking neurons, and --neuron=relu has "
                                "none; leave it out.")
        if self.init is None:
            object.__setattr__(self, "init", "normal")
        if self.init != "normal":
            raise UserError(f"--init={self.init} aims at a firing rate, and --neuron=relu has none; use --init=normal.")
        if set(self.export) - {"keras"}:
            raise UserError(f"--export={plain(self.export)} writes spiking networks; --neuron=relu takes keras or "
                            "none.")

    @property
    def is_spiking(self) -> bool:
        """Whether its neurons fire, over a window of time steps; else the network is an ordinary ANN."""
        return self.neuron != "relu"

    def timesteps_at(self, epoch: int) -> int:
        """Steps of the window in an epoch of training, counted from 0."""
        for steps, epochs in pairs(self.timesteps_schedule):
            if epoch < epochs:
                return steps
            epoch -= epochs
        return self.timesteps

    @property
    def random_input(self) -> bool:
        """Whether answers depend on a draw of the input's noise."""
        return self.is_spiking and self.encoder == "poisson"

    def warnings(self) -> list[str]:
        """Returns sentences about legal settings that are probably not meant."""
        found = []
        if self.surrogate == "leak_aware" and self.leak < 1 / math.e:
            found.append(f"--leak={self.leak} is below 1/e = 0.368, where the leak-aware slope can turn negative; "
                         "training may go uphill.")
        if self.init != "rate" and self.target_rate != FIELDS["target_rate"].default:
            found.append(f"--target_rate={self.target_rate:g} is for --init=rate and changes nothing under "
                         f"--init={self.init}.")
        if self.warmup_epochs >= self.epochs:
            found.append(f"--warmup_epochs={self.warmup_epochs} covers all --epochs={self.epochs}, so the learning "
                         "rate only rises; give more epochs or --warmup_epochs=0.")
        if self.dataset not in DATASETS:
            names = DATASETS + tuple(DATASET_ALIASES)
            found.append(f"{self.dataset!r} is none of the sets known here, so TFDS is asked for it."
                         + closest(self.dataset, names))
        return found


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How this command runs the experiment; nothing here is part of it.

    Raises:
      UserError: a value is illegal, contradicts another one, or names a path that is not there.
    """

    preset: str | None = setting(None, "A named experiment, below --config and flags; list shows them and ends.",
                                 group="This command", choices=(presets.LIST, *presets.EXPERIMENTS))
    method: str | None = setting(None, "A training method of the field, for what it is made of, in place of the recipe "
                                 f"that works best in hours: {methods.listing()}.", group="This command",
                                 choices=methods.METHODS)
    config: str | None = setting(None, "JSON file of settings, below flags; a run's config.json works.",
                                 group="This command", legal="a JSON file", path=True)
    resume: str = setting("auto", "Continue the run in the workdir if there is one (auto), never, must, or from the "
                          "checkpoint or workdir at this path.", group="This command", path=True,
                          legal="auto, never, must or a path")
    init_from: str | None = setting(None, "Start from these weights: a .keras file, SavedModel, checkpoint or workdir, "
                                    "or a name from docs/models.md.", group="This command",
                                    legal="a file or folder of weights, or a name from docs/models.md", path=True)
    dry_run: bool = setting(False,
                            "Build, show the layers, try two steps and every later stage, and leave nothing behind.",
                            group="This command")
    verbose: bool = verbose_setting("This command")

    def __post_init__(self) -> None:
        normalise_all(self)
        if self.resume not in RESUME_WORDS and not _is_there(self.resume):
            raise UserError(f"--resume takes auto, never, must or the path of a checkpoint or workdir; there is no "
                            f"{shown(self.resume)}.{closest(self.resume, RESUME_WORDS)}")
        if self.init_from is not None and not _is_there(self.init_from) and not weights.is_meant(self.init_from):
            known = weights.available()
            raise UserError("--init_from takes a file or folder of weights, or a name of the library's "
                            f"({', '.join(known)}); there is no {shown(self.init_from)}."
                            + closest(self.init_from, known))
        if self.method is not None and self.preset is not None:
            raise UserError(f"--method={self.method} and --preset={self.preset} both choose settings; give only one.")
        if self.init_from is not None and self.resume not in ("auto", "never"):
            raise UserError("--init_from starts a new run and --resume continues one; give only one of them.")


def _is_there(path: str) -> bool:
    return "://" in path or os.path.exists(path)  # remote file systems are TensorFlow's to look into


FIELDS: dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(Config)}
