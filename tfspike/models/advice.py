"""What helps a network that does not learn, in words: the flags of train.py; `callbacks` has it in terms of Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tfspike.checks import may_adapt
from tfspike.config.config import Config
from tfspike.datasets import DatasetInfo
from tfspike.neurons.slopes import kind_of
from tfspike.variants import VARIANTS

_BY_HEART = 0.15  # training accuracy above that of validation, from which on images are known and not understood


class Advice(Protocol):
    """What `tfspike.diagnosis.Watch` needs to know of a training, and which remedies it names."""

    @property
    def stops_on_collapse(self) -> bool:
        """Whether a network that no gradient reaches ends the training."""
        ...

    @property
    def normalised(self) -> bool:
        """Whether scales of weights and thresholds are normalised away."""
        ...

    @property
    def needs_spikes(self) -> bool:
        """Whether a neuron without a spike gets no gradient."""
        ...

    def update_ratios(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Size of the next update over the size of the weights, per weight; {} where that is no sign of trouble."""
        ...

    def restart(self, last_living: str | int | None) -> str:
        """What to do about a collapse; `last_living` is the last checkpoint of a network that gradients reached."""
        ...

    def louder(self, layer: str) -> str:
        """What makes a layer fire more, the likely culprit first."""
        ...

    def quieter(self, layer: str) -> str:
        """What makes a layer fire less."""
        ...

    def smaller_weights(self) -> str:
        """What keeps weights from growing."""
        ...

    def smaller_steps(self) -> str:
        """What makes updates smaller, or their cause."""
        ...


class RunAdvice:
    """`Advice` in flags of train.py.

    Args:
      config: of the run.
    """

    def __init__(self, config: Config):
        self.config = config

    @property
    def stops_on_collapse(self) -> bool:
        return self.config.on_collapse == "stop"

    @property
    def normalised(self) -> bool:
        """Whether scales of weights and thresholds are normalised away."""
        return self.config.norm != "none"

    @property
    def needs_spikes(self) -> bool:
        """Whether a neuron without a spike gets no gradient."""
        return kind_of(self.config.surrogate).needs_spikes

    def restart(self, last_living: str | int | None) -> str:
        """What to do about a collapse."""
        if last_living is None:
            return f"Start again (--resume=never) with {self.smaller_steps()}."
        return (f"Start again with {self.smaller_steps()}; the last checkpoint of it alive is "
                f"{named(last_living)}, and --init_from={named(last_living)} with another "
                "--workdir begins there.")

    def quieter(self, layer: str) -> str:
        """Flags that make a layer fire less."""
        return f"--init=rate (aims at --target_rate={self.config.target_rate:g}), a smaller --kappa (now " \
               f"{self._kappa():g}) or a higher --threshold (now {self.config.threshold:g})"

    def update_ratios(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Size of the next update over the size of the weights, per weight. Adam's updates are about the rate each,
        whatever the gradient, and their ratio is not a sign of trouble: left out."""
        if self.config.optimizer != "sgd":
            return {}
        norms = {name: value for name, value in stats.items() if name.startswith("grad_norm/")}
        total = math.sqrt(sum(value * value for value in norms.values()))
        clip = min(1.0, self.config.clip_norm / total) if self.config.clip_norm and total else 1.0
        rate = stats.get("learning_rate", self.config.learning_rate)
        return {name.partition("/")[2]: rate * clip * value / stats[weight] for name, value in norms.items()
                if stats.get(weight := name.replace("grad_norm/", "weight_norm/"), 0.0) > 0.0
                and not name.endswith((".gamma", ".beta"))}  # which begin at 1 and 0, whatever is small for them

    def louder(self, layer: str) -> str:
        """Flags that make a layer fire more, the likely culprit first."""
        if self.normalised:  # currents have the size of the threshold already
            return either([f"more --timesteps (now {self.config.timesteps})",
                           f"a smaller --learning_rate (now {self.config.learning_rate:g})",
                           *adapting(self.config, "--homeostasis")])
        usual = VARIANTS[self.config.model].kappa
        ways = [f"lower --threshold (now {self.config.threshold:g}, usually 1)"] if self.config.threshold > 1.0 else []
        if self._kappa() < usual:
            ways.append(f"raise --kappa (now {self._kappa():g}, usually {usual:g})")
        if self.config.init != "rate":
            ways.append("--init=rate (scales the first weights until every layer fires)")
        else:
            ways.append(f"raise --target_rate (now {self.config.target_rate:g})")
        if self._kappa() >= usual:
            ways.append(f"raise --kappa (now {self._kappa():g})")
        if self.config.threshold <= 1.0:
            ways.append(f"lower --threshold (now {self.config.threshold:g})")
        return either([*ways, *adapting(self.config, "--homeostasis")])

    def smaller_weights(self) -> str:
        """Flags that keep weights from growing; L2 in a gradient that Adam divides by its size hardly does."""
        decay = ("--optimizer=adamw --weight_decay=1" if self.config.optimizer == "adam" else
                 f"more --weight_decay (now {self.config.weight_decay:g})")
        return either([decay, f"a smaller --learning_rate (now {self.config.learning_rate:g})"])

    def smaller_steps(self) -> str:
        """Flags that make updates smaller, or their cause."""
        usual, clip = VARIANTS[self.config.model].kappa, self.config.clip_norm
        ways = [f"a smaller --learning_rate (now {self.config.learning_rate:g})",
                f"a smaller --clip_norm (now {clip:g})" if clip else "--clip_norm=1 (bounds every update)"]
        if self._kappa() > 2 * usual:
            ways.insert(0, f"a smaller --kappa (now {self._kappa():g}, usually {usual:g})")
        return either(ways)

    def _kappa(self) -> float:
        return VARIANTS[self.config.model].kappa if self.config.kappa is None else self.config.kappa


def adapting(neurons: Any, option: str) -> list[str]:
    """What lowers thresholds of channels that do not fire: nothing where it is in use, or is not for such neurons.

    Args:
      neurons: settings or a layer with the constants of LIF neurons.
      option: how the user gives `homeostasis`.
    """
    possible = may_adapt(neurons.learn, neurons.start, neurons.running_start, neurons.gradient)
    if neurons.homeostasis or not possible:
        return []
    return [f"{option}=0.01 (lowers thresholds of channels that do not fire)"]


def known_by_heart(training: float, validation: float, records: int, info: DatasetInfo,
                   has_dropout: bool) -> str | None:
    """What to do about a network that knows its training images alone, in flags of train.py; None about any other.

    Args:
      training: accuracy of the last epoch on its training images, of 0 to 1.
      validation: the same on records held out; so few of them that chance alone may explain the difference are not
        believed.
      records: how many were held out.
      info: of the data, as the network was trained on them.
      has_dropout: whether neurons were silenced in training.
    """
    share = (validation * records + 1) / (records + 2)  # Laplace's, as none or all of a few are no certainty
    if training - validation < max(_BY_HEART, 2.0 * math.sqrt(share * (1.0 - share) / max(records, 1))):
        return None
    unused = [] if info.augment or info.event_based else [
        f"--augment (shifted{' and mirrored' if info.mirrored else ''} images)"]
    unused += [] if has_dropout else ["--dropout=0.2"]
    return (f"The network knows its training images by heart: {100 * training:.1f} % of them are right, and "
            f"{100 * validation:.1f} % of the validation records. What helps: {', '.join([*unused, 'more images'])}.")


# ---- words -------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{math.floor(100 * share + 1e-4)} %"


def factor(ratio: float) -> str:
    """A ratio in words."""
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:,.0f} times" if ratio < 1e6 else f"{ratio:.0e} times"


def either(ways: Sequence[str]) -> str:
    """"a, b or c"."""
    return f"{', '.join(ways[:-1])} or {ways[-1]}"


def shortened(names: Sequence[str]) -> str:
    """Names in one line, the middle of a long list left out."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])}, ... {names[-1]}"


def named(where: str | int) -> str:
    """A checkpoint by its path, or by its step."""
    return f"that of step {where}" if isinstance(where, int) else str(where)
