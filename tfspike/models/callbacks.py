"""What `fit` says of spikes: firing rates by epoch, and why a network does not learn (silent and saturated layers, no
gradient, numbers not finite).

    model.fit(images, labels, callbacks=[tfspike.FiringRates(), tfspike.Diagnosis()])

In a `Diagnosis`, the states and their patience are those of train.py (`tfspike.diagnosis.Watch`); the remedies are in
terms of Python.
"""

from __future__ import annotations

import inspect
import numbers
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.checks import check_count
from tfspike.engine.plan import Plan
from tfspike.models.advice import adapting, either
from tfspike.models.diagnosis import Diverged, Watch, layer_statistics, weight_names
from tfspike.models.network import window_of
from tfspike.neurons.encoders import SpikeInput, unscaled
from tfspike.neurons.layers import LIF
from tfspike.neurons.slopes import kind_of

LARGEST_INPUT = "input/largest"  # of `SpikingModel.activity_statistics`
_FIRST_LOOKS = (1, 2, 3, 5, 10, 20)  # batches: what is wrong with the first weights shows at once
_START = 'kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")'


class FitAdvice:
    """`Advice` in terms of Python, for a model in `fit`, which has no configuration.

    Args:
      model: a built and compiled Keras model, spiking or not.
    """

    stops_on_collapse = False

    def __init__(self, model: Any):
        self._model = model
        window = window_of(model)
        self._neurons = {} if window is None else {call.name: call.layer for call in window.spiking}
        self.normalised = window is not None and bool(window.norms)
        self.needs_spikes = any(kind_of(layer.surrogate).needs_spikes for layer in self._neurons.values())

    def update_ratios(self, stats: Mapping[str, float]) -> dict[str, float]:
        return {}  # of single updates, which are not looked at here

    def restart(self, last_living: str | int | None) -> str:
        return "Start again with other first weights or a smaller learning rate."

    def louder(self, layer: str) -> str:
        neurons = self._neurons.get(layer)
        adapts = adapting(neurons, "give it homeostasis") if isinstance(neurons, LIF) else []
        if self.normalised:
            return either([f"more timesteps (now {self._model.timesteps})",
                           _slower(self._model), *adapts])
        return either([f"give the synapses in front of it {_START} (Keras' own start is too weak to fire)",
                       "call tfspike.initialisation.initialise_rates(model, images) before fit",
                       f"lower its threshold{self._threshold(layer)}", *adapts])

    def quieter(self, layer: str) -> str:
        return ("smaller first weights, tfspike.initialisation.initialise_rates(model, images) before fit, or a higher "
                f"threshold{self._threshold(layer)}")

    def smaller_weights(self) -> str:
        return either(["weight decay, as of keras.optimizers.AdamW(weight_decay=1.0)", _slower(self._model)])

    def smaller_steps(self) -> str:
        optimizer = self._model.optimizer
        if optimizer is None:
            return _slower(self._model)
        clip = optimizer.clipnorm or optimizer.global_clipnorm
        bound = f"a smaller clipnorm (now {clip:g})" if clip else "clipnorm=1.0 in the optimizer (bounds every update)"
        return f"{_slower(self._model)} or {bound}"

    def _threshold(self, layer: str) -> str:
        value = getattr(self._neurons.get(layer), "threshold", None)  # of neurons of the user's own, anything
        return f" (now {value:g})" if isinstance(value, numbers.Real) else ""


class FitWatch(Watch):
    """`Watch` for `fit`, which also says that pixels are unscaled, as many data sets of Keras and TensorFlow are.

    Gradients are not at hand there; `grad_norm/...` is 1 of a weight that moved since the last look, else 0. It is zero
    where every gradient is.

    Args:
      model: a built and compiled Keras model, spiking or not.
      scale_is_known: what is to be said of the scale of pixels was said before.
    """

    _collapse_patience = 10

    def __init__(self, model: Any, scale_is_known: bool = False):
        super().__init__(model, FitAdvice(model))
        self._scale_is_known = scale_is_known

    def update(self, step: int, stats: Mapping[str, float]) -> list[str]:
        return [*self._unscaled(stats), *super().update(step, stats)]

    def _unscaled(self, stats: Mapping[str, float]) -> list[str]:
        largest = stats.get(LARGEST_INPUT, 0.0)
        found = [] if self._scale_is_known else unscaled(largest, f"of up to {largest:g}")
        self._scale_is_known |= bool(found)
        return found

    def _diverge(self, step: int, what: str) -> None:
        raise Diverged(f"{what} (step {step}): training has diverged. Start again with {self._advice.smaller_steps()}, "
                       "or without the NaN that images or labels may hold.")

    def first(self, step: int, stats: Mapping[str, float]) -> list[str]:
        """Of `update`, what keeps a network from learning at all: unscaled pixels, numbers not finite, silent layers,
        and no gradient.

        Raises:
          Diverged: NaN or Inf in the loss or a weight.
        """
        if found := self._unscaled(stats):
            return found
        self._first_step = step if self._first_step is None else self._first_step
        self._refuse_nonfinite(step, stats)
        found = [*self._silent(step, stats), *self._collapse(step, stats)]
        self._remember(stats)
        return found


class Diagnosis(keras.callbacks.Callback):
    """Says in `fit` why a network does not learn: once per layer and state, with the layer, the cause and the remedy.

    It names unscaled pixels, silent and saturated layers, neurons without gradient, gradients that are all zero, and
    weights or a loss that are not finite. It looks at the first batches, then at every `every`-th, and changes nothing;
    a look costs a pass over the weights. Spike counts are those of the training steps themselves, under both gradients
    and layer by layer. Of a model without spikes (`ReluModel`), of a graph without one window, and under a distribution
    strategy, weights and loss alone are watched.

    Args:
      every: batches between two looks.
      say: takes the sentences; None gives them to `warnings.warn`.

    Raises:
      UserError: `every` is no whole number above 0.
    """

    def __init__(self, every: int = 50, say: Callable[[str], None] | None = None):
        super().__init__()
        self.every = check_count("every", every)
        self._say = say or _warn
        self._watch: Any = None
        self._scale_is_known = False  # said before, of arrays

    def on_train_begin(self, logs: Any = None) -> None:
        self._step = self._before = self._looked = 0
        self._done = self._has_spoken()
        if not self._done:
            self._watch, self._sums = FitWatch(self.model, self._scale_is_known), self._weights()[1]

    def _has_spoken(self) -> bool:
        """Whether all has been said before this `fit`."""
        return False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._before = self._step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step = self._before + batch + 1
        if self._step in _FIRST_LOOKS or self._step - self._looked >= self.every:
            self._look(logs)

    def on_train_end(self, logs: Any = None) -> None:
        if self._step > self._looked:
            self._look(logs)

    def _look(self, logs: Mapping[str, float] | None) -> None:
        self._looked = self._step
        if self._done:
            return
        try:
            for text in self._found(self._statistics(logs or {})):
                self._say(text)
        except Diverged as error:
            self._done = True
            self._say(str(error))

    def _found(self, stats: Mapping[str, float]) -> list[str]:
        return self._watch.update(self._step, stats)

    def _statistics(self, logs: Mapping[str, float]) -> dict[str, float]:
        before = self._sums
        norms, self._sums = self._weights()
        found = {**getattr(self.model, "activity_statistics", dict)(),
                 **{f"weight_norm/{name}": norm for name, norm in norms.items()}}
        if _learning_rate(self.model) != 0.0:  # else weights stand still whatever the gradient
            found |= {f"grad_norm/{name}": float(value != before[name]) for name, value in self._sums.items()}
        return found | ({"loss": float(logs["loss"])} if "loss" in logs else {})

    def _weights(self) -> tuple[dict[str, float], dict[str, int]]:
        """Norms and checksums of all weights by name, from one pass; none of them is kept."""
        norms, sums = {}, {}
        variables = self.model.trainable_variables
        for name, variable in zip(weight_names(variables), variables):
            value = variable.value.numpy()
            norms[name] = float(np.linalg.norm(value.astype(np.float64)))
            sums[name] = zlib.crc32(value.tobytes())
        return norms, sums


class FiringRates(keras.callbacks.Callback):
    """Adds the firing rate of every spiking layer to what `fit` logs after each epoch: `rate/<layer>`, spikes per
    neuron and step, mean over the epoch's batches.

        history = model.fit(images, labels, callbacks=[tfspike.FiringRates()]).history
        history["rate/lif"]

    Rates are those of the training steps themselves, and cost a read of one small variable per batch. Put it in front
    of callbacks that write logs, such as `CSVLogger` and `TensorBoard`. A model that counts no spikes (`ReluModel`, one
    of several inputs or Readouts, or any under a distribution strategy) logs none.
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._sums: dict[str, float] = {}
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batches += 1
        for name, value in getattr(self.model, "activity_statistics", dict)().items():
            if name.startswith("rate/"):
                self._sums[name] = self._sums.get(name, 0.0) + value

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs.update({name: total / self._batches for name, total in self._sums.items()})


class FirstWarning(Diagnosis):
    """What `SpikingModel.fit` adds where no `Diagnosis` is given: one warning per model, of a network that cannot learn
    from its first weights or whose training has diverged."""

    def __init__(self, told: dict[str, Any]):
        super().__init__()
        self._told = told  # kept with the model

    def _has_spoken(self) -> bool:
        return "warned" in self._told

    def _found(self, stats: Mapping[str, float]) -> list[str]:
        try:
            texts = self._watch.first(self._step, stats)[:1]
        except Diverged as error:
            texts = [str(error)]
        if texts:
            self._told["warned"] = self._done = True
        return [f"{text} (tfspike.Diagnosis() as a callback watches for more.)" for text in texts]


def watched(model: Any, told: dict[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
            scale_is_known: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `keras.Model.fit` with a `FirstWarning` among the callbacks, unless they have a `Diagnosis`; `told`
    is where that notes that it has warned, `scale_is_known` where the scale of pixels was looked at before."""
    bound = inspect.signature(keras.Model.fit).bind(model, *args, **kwargs)
    given = bound.arguments.get("callbacks")
    if not isinstance(given, keras.callbacks.CallbackList):  # which is whole, and not ours
        listed = keras.tree.flatten(given) if given is not None else []
        if not any(isinstance(callback, Diagnosis) for callback in listed):
            listed = bound.arguments["callbacks"] = [*listed, FirstWarning(told)]
        for callback in listed:
            if isinstance(callback, Diagnosis):
                callback._scale_is_known = scale_is_known
    return bound.args[1:], bound.kwargs


def keep_statistics(told: dict[str, Any], heard: dict[str, tf.Tensor], timesteps: int) -> None:
    """Keeps what `SpikingModel.activity_statistics` tells, of spike counts and the size of pixels that a training step
    heard of, in a variable among what is `told` of the model."""
    largest = {name: heard.pop(name) for name in (LARGEST_INPUT,) if name in heard}
    stats = {**layer_statistics(heard, timesteps, [], []), **largest}
    kept = _room(told, len(stats))
    told["statistics"] = list(stats), kept
    kept.assign(tf.stack(list(stats.values())))


def make_room(told: dict[str, Any], plan: Plan) -> None:
    """Makes the variable of `keep_statistics` before a step of this model is traced, which it would be again."""
    layers = {call.name: tf.zeros([1, 1]) for call in plan.spiking}
    codes = not isinstance(plan.encoder.layer, SpikeInput)
    kept = _room(told, len(layer_statistics(layers, plan.encoder.layer.timesteps, [], [])) + codes)
    told.setdefault("statistics", ([], kept))


def _room(told: Mapping[str, Any], size: int) -> tf.Variable:
    _, kept = told.get("statistics", ([], None))
    if kept is not None and kept.shape[0] == size:
        return kept
    with tf.init_scope():  # outlives the graph that is being traced
        return tf.Variable(tf.zeros(size), trainable=False)


def kept_statistics(told: Mapping[str, Any]) -> dict[str, float]:
    """Them as they are now; {} before the first step."""
    names, kept = told.get("statistics", ((), None))
    return {} if kept is None else dict(zip(names, kept.numpy().tolist()))


def _learning_rate(model: Any) -> float | None:
    """None of a model without an optimizer, whose `train_step` is the user's own."""
    if model.optimizer is None:
        return None
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))  # a strategy has one per replica


def _slower(model: Any) -> str:
    rate = _learning_rate(model)
    return "a smaller learning rate" + ("" if rate is None else f" (now {rate:g})")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
