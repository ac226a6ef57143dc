"""Why a network does not learn: statistics of every layer, and warnings that name the layer, the cause and the remedy.

`layer_statistics` runs inside the training step, on spike counts, gradients and weights that are there anyway. `Watch`
reads its numbers outside the graph and turns them into sentences. Numbers that are not finite end the run (`Diverged`).

Spikes hide NaN: a neuron whose membrane is NaN never exceeds its threshold, so a layer with NaN weights is just silent
and the loss stays finite. Weights are therefore watched as well as the loss and the gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspike.config.config import Config
from tfspike.errors import UserError
from tfspike.models.advice import Advice, RunAdvice, factor, named, percent, shortened
from tfspike.models.network import window_of
from tfspike.neurons.homeostasis import longest_fall
from tfspike.neurons.layers import SpikingLayer
from tfspike.output import counted

SATURATED_RATE = 0.95    # spikes per step from which a neuron counts as saturated
SILENT_SHARE = 0.95      # share of silent neurons from which a layer is warned about
SATURATED_SHARE = 0.5    # share of saturated neurons, likewise
NO_GRADIENT_SHARE = 0.99  # share of neuron-samples without gradient, likewise
GROWTH = 3.0             # factor on a layer's weight norm that start values do not explain
RISEN_RATE = 0.3         # spikes per step from which a layer is warned about that began to learn
RISEN = 3.0              # times less active
PATIENCE = 50            # steps a state must last before it is called lasting
COLLAPSE_PATIENCE = 20   # the same where no gradient reaches any weight: longer than Adam's momentum carries on
CUT_PATIENCE = 10        # the same where no spike at all comes through a layer that did fire before


class Diverged(UserError):
    """Training has left the finite numbers; names the layer and the last good checkpoint. Ends a command with 4."""

    exit_code = 4


class Collapsed(Diverged):
    """No gradient reaches any weight any more, so that the network stays as it is (`--on_collapse`)."""


# ---- in the graph ------------------------------------------------------------------------------------------------


def layer_of(variable: Any) -> str:
    """The layer of the model that a Keras variable belongs to: the first part of its path."""
    return variable.path.split("/")[0]


def weight_names(variables: Sequence[Any]) -> list[str]:
    """The layer's name for a layer with one weight, else layer.weight."""
    layers = [layer_of(variable) for variable in variables]
    return [layer if layers.count(layer) == 1 else f"{layer}.{variable.path.split('/')[-1]}"
            for layer, variable in zip(layers, variables)]


def statistic_names(layers: Sequence[str], variables: Sequence[Any]) -> list[str]:
    """The names, in their order, of what `layer_statistics` returns of these spiking layers and trainable variables."""
    return [*(f"{kind}/{layer}" for layer in layers for kind in ("rate", "silent", "saturated", "zero_gradient")),
            *(f"{kind}/{name}" for name in weight_names(variables) for kind in ("grad_norm", "weight_norm"))]


def layer_statistics(activity: Mapping[str, tf.Tensor], timesteps: int, grads: Sequence[tf.Tensor | None],
                     variables: Sequence[Any]) -> dict[str, tf.Tensor]:
    """Statistics of one training step, float32 scalars.

    Args:
      activity: spikes per window of every neuron, `{layer: [B, ...]}` (`SpikingModel.observe`).
      timesteps: T, steps in the window.
      grads: of the trainable variables, as they come from the tape (before clipping); None counts as zeros.
      variables: the trainable Keras variables, in the same order.

    Returns:
      * `rate/<layer>`: mean firing rate, spikes per step.
      * `silent/<layer>`: share of neurons (positions in the map) that fired on no sample of the batch.
      * `saturated/<layer>`: share of neurons whose rate over the batch is above .95 spikes per step.
      * `zero_gradient/<layer>`: share of neuron-samples without a spike; their leak-aware slope is 0 and no gradient
        passes, while a surrogate's may.
      * `grad_norm/<weight>`, `weight_norm/<weight>`: Euclidean norms.
    """
    stats: dict[str, tf.Tensor] = {}
    for layer, count in activity.items():
        per_neuron = tf.reduce_mean(count, axis=0)  # the one pass over counts that rate, silent and saturated share
        rate = per_neuron / timesteps
        stats[f"rate/{layer}"] = tf.reduce_mean(rate)
        stats[f"silent/{layer}"] = _share(per_neuron <= 0.0)
        stats[f"saturated/{layer}"] = _share(rate > SATURATED_RATE)
        stats[f"zero_gradient/{layer}"] = 1.0 - tf.reduce_mean(tf.sign(count))  # the cheapest way to compare with 0
    for name, grad, variable in zip(weight_names(variables), grads, variables):
        stats[f"grad_norm/{name}"] = tf.zeros(()) if grad is None else _norm(grad)
        stats[f"weight_norm/{name}"] = _norm(variable.value)
    return stats


def _share(condition: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(condition, tf.float32))


def _norm(values: Any) -> tf.Tensor:
    return tf.norm(tf.cast(tf.convert_to_tensor(values), tf.float32))


def nonfinite_layer(model: keras.Model) -> str | None:
    """The first layer, in the order of the forward pass, with NaN or Inf in its weights; None where all are finite.

    To be asked before a checkpoint is written, so that the last checkpoint is always a good one.
    """
    for variable in model.trainable_variables:
        if not bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable.value)))):
            return layer_of(variable)
    return None


# ---- outside of the graph ----------------------------------------------------------------------------------------


def feeding_weights(model: keras.Model) -> dict[str, list[str]]:
    """The layers with weights between each spiking layer and the spiking layers before it; {} without a plan."""
    plan = window_of(model)
    if plan is None:
        return {}
    producers = {output: call for call in plan.window for output in call.outputs}

    def weights_behind(x: Any) -> list[str]:
        call = producers.get(x)
        if call is None or isinstance(call.layer, SpikingLayer):
            return []
        own = [call.layer.name] if call.layer.trainable_variables else []
        return [name for tensor in call.sources for name in weights_behind(tensor)] + own

    return {call.name: weights_behind(call.source) for call in plan.spiking}


class Watch:
    """Reads the statistics of a run and says, once per layer and state, what is wrong and what helps.

    A state is said again only after it has changed. Layers that are silent because a layer in front of them is are
    named in that layer's sentence, not in sentences of their own.

    Args:
      model: the model before its first step of this command.
      config: of the run; or, where there is none, what helps in other words than its flags.

    Attributes:
      last_checkpoint: step or path of the last good checkpoint, for the message of `Diverged`; set by `saved`.
      last_living: the last one of a network that gradients reached; None before one was seen.
    """

    _collapse_patience = COLLAPSE_PATIENCE

    def __init__(self, model: keras.Model, config: Config | Advice):
        self._advice: Advice = RunAdvice(config) if isinstance(config, Config) else config
        self.last_checkpoint: str | int | None = None
        self.last_living: str | int | None = None
        window = window_of(model)
        self._spiking = [] if window is None else [call.name for call in window.spiking]
        self._weights = [layer_of(variable) for variable in model.trainable_variables]
        self._feeding = feeding_weights(model)
        self._start_norm = {name: float(np.linalg.norm(np.asarray(v.value.numpy(), np.float32)))
                            for name, v in zip(weight_names(model.trainable_variables), model.trainable_variables)}
        self._since: dict[tuple[str, str], int] = {}  # (layer, state) -> step at which it was first seen
        self._said: set[tuple[str, str]] = set()
        self._alive: set[str] = set()                 # layers that were seen firing
        self._first_step: int | None = None
        self._first_rate: dict[str, float] = {}
        layers = [] if window is None else [call.layer for call in window.spiking]
        self._fall = max((longest_fall(layer.homeostasis) for layer in layers), default=0)
        self._collapse_patience += self._fall  # thresholds may still fall until neurons fire

    # ---- public ------------------------------------------------------------------------------------------------

    def check(self, step: int, loss: float) -> None:
        """Refuses a loss that is not finite; cheap enough for every step.

        Raises:
          Diverged: the loss is NaN or Inf.
        """
        if not math.isfinite(loss):
            self._diverge(step, f"The loss is {_number(loss)}")

    def update(self, step: int, stats: Mapping[str, float]) -> list[str]:
        """New warnings after step `step`.

        Args:
          step: training steps so far.
          stats: what `layer_statistics` returned, as floats; "loss" and "learning_rate" are used where given.

        Raises:
          Diverged: NaN or Inf in the loss, a gradient or a weight.
          Collapsed: no gradient for `COLLAPSE_PATIENCE` steps, unless `config.on_collapse` is "continue".
        """
        stats = {name: float(value) for name, value in stats.items()}
        self._first_step = step if self._first_step is None else self._first_step
        self._refuse_nonfinite(step, stats)
        warnings = [*self._silent(step, stats), *self._saturated(step, stats), *self._rising(step, stats),
                    *self._starved(step, stats), *self._steps_too_large(step, stats), *self._collapse(step, stats)]
        self._remember(stats)
        return warnings

    def _remember(self, stats: Mapping[str, float]) -> None:
        self._alive.update(layer for layer in self._layers(stats) if stats.get(f"silent/{layer}", 1.0) < SILENT_SHARE)

    # ---- finite numbers ----------------------------------------------------------------------------------------

    def _refuse_nonfinite(self, step: int, stats: Mapping[str, float]) -> None:
        weights = [name for name in stats if name.startswith("weight_norm/") and not math.isfinite(stats[name])]
        grads = [name for name in stats if name.startswith("grad_norm/") and not math.isfinite(stats[name])]
        if weights:
            self._diverge(step, f"The weights of {_layer(weights[0])} are no longer finite numbers")
        if grads:
            # the backward pass goes from the last layer to the first: the last one named is where it began
            self._diverge(step, f"The gradient is no longer finite, from {_layer(grads[-1])} on backwards")
        if "loss" in stats:
            self.check(step, stats["loss"])

    def _diverge(self, step: int, what: str) -> None:
        if self.last_checkpoint is None:
            good = "There is no checkpoint from before; start again"
        else:
            good = f"The last good checkpoint is {named(self.last_checkpoint)}; start a new run, from it or anew,"
        raise Diverged(f"{what} (step {step}): training has diverged. {good} with {self._advice.smaller_steps()}.")

    # ---- states of a layer -------------------------------------------------------------------------------------

    def _silent(self, step: int, stats: Mapping[str, float]) -> list[str]:
        layers = self._layers(stats)
        shares = {layer: stats.get(f"silent/{layer}", 0.0) for layer in layers}
        for layer in layers:
            self._mark(layer, "silent", step, shares[layer], SILENT_SHARE)
        warnings: list[str] = []
        for first, *behind in _runs(layers, lambda layer: shares[layer] >= SILENT_SHARE):
            cut = [layer for layer in (first, *behind) if shares[layer] == 1.0]  # nothing comes through: a short wait,
            patience = PATIENCE if not cut else CUT_PATIENCE if cut[0] in self._alive else 0  # or none at the start
            if not self._due(first, "silent", step, patience):
                continue
            self._said.add((first, "silent"))
            text = f"{first}: {percent(shares[first])} of neurons silent {self._duration(first, 'silent', step)}"
            if behind:
                text += f", and with them the {counted(len(behind), 'layer')} behind it ({shortened(behind)})"
            warnings.append(f"{text}. {self._why_silent(first, stats)}")
        return warnings

    def _saturated(self, step: int, stats: Mapping[str, float]) -> list[str]:
        warnings = []
        for layer in self._layers(stats):
            share = stats.get(f"saturated/{layer}", 0.0)
            self._mark(layer, "saturated", step, share, SATURATED_SHARE)
            if self._due(layer, "saturated", step):
                self._said.add((layer, "saturated"))
                warnings.append(
                    f"{layer}: {percent(share)} of neurons saturated (above {SATURATED_RATE} spikes per step) "
                    f"{self._duration(layer, 'saturated', step)}, so they tell little about the image. "
                    f"{self._why_saturated(layer, stats)}")
        return warnings

    def _rising(self, step: int, stats: Mapping[str, float]) -> list[str]:
        """Rates that nothing turns back: a slope of spikes does not fall where a neuron can hardly fire more often."""
        unbounded = self._advice.needs_spikes and not self._advice.normalised
        warnings = []
        for layer in self._layers(stats) if unbounded else ():
            rate = stats.get(f"rate/{layer}", 0.0)
            first = self._first_rate.setdefault(layer, rate)
            self._mark(layer, "rising", step, rate if 0.0 < RISEN * first <= rate else 0.0, RISEN_RATE)
            if self._due(layer, "rising", step):
                self._said.add((layer, "rising"))
                warnings.append(
                    f"{layer}: neurons fire {factor(rate / first)} as often as at first, {rate:.2g} spikes per step. "
                    "The slope of spikes does not end where they can hardly fire more often, so rates may rise until "
                    f"they tell little about the image. Keep the weights small: {self._advice.smaller_weights()}.")
        return warnings

    def _starved(self, step: int, stats: Mapping[str, float]) -> list[str]:
        warnings = []
        for layer in self._layers(stats):
            share = stats.get(f"zero_gradient/{layer}", 0.0) if self._advice.needs_spikes else 0.0
            sparse = stats.get(f"silent/{layer}", 0.0) < SILENT_SHARE  # else said already
            self._mark(layer, "starved", step, share if sparse else 0.0, NO_GRADIENT_SHARE)
            if self._due(layer, "starved", step):
                self._said.add((layer, "starved"))
                warnings.append(
                    f"{layer}: on any one image {percent(share)} of neurons get no gradient "
                    f"{self._duration(layer, 'starved', step)}, because they do not fire on it; learning is slow. "
                    f"Let them fire more often: {self._advice.louder(layer)}.")
        return warnings

    def _steps_too_large(self, step: int, stats: Mapping[str, float]) -> list[str]:
        """A single update as large as the weights it changes forgets what was learnt."""
        ratios = self._advice.update_ratios(stats)
        worst = max(ratios, key=ratios.__getitem__, default=None)
        for name, ratio in ratios.items():
            self._mark(name, "overshoot", step, ratio, 1.0)
        if worst is None or ratios[worst] < 1.0 or (worst, "overshoot") in self._said:
            return []
        too_large = [name for name, ratio in ratios.items() if ratio >= 1.0]
        self._said.update((name, "overshoot") for name in too_large)
        others = f" ({counted(len(too_large), 'layer')} in all: {shortened(too_large)})" if len(too_large) > 1 else ""
        return [f"{worst}: at step {step} one update is {factor(ratios[worst])} as large as the weights themselves"
                f"{others}, so every step undoes the one before. Use {self._advice.smaller_steps()}."]

    def _collapse(self, step: int, stats: Mapping[str, float]) -> list[str]:
        norms = [value for name, value in stats.items() if name.startswith("grad_norm/")]
        layers = self._layers(stats)
        no_gradient = bool(norms) and not any(norms)
        no_output = self._advice.needs_spikes and bool(layers) and stats.get(f"rate/{layers[-1]}", 1.0) == 0.0
        self._mark("network", "collapsed", step, float((no_gradient and stats.get("loss") != 0.0) or no_output), 1.0)
        if not self.is_collapsed:
            self.last_living = self.last_living or self.last_checkpoint
        if not self._due("network", "collapsed", step, self._collapse_patience):
            return []
        self._said.add(("network", "collapsed"))
        what = ("every gradient is exactly zero" if no_gradient
                else f"no spike comes out of {layers[-1]}, so the output is zero for every image")
        silent = [layer for layer in layers if stats.get(f"silent/{layer}", 0.0) >= SILENT_SHARE]
        why = f"It begins at {silent[0]}. {self._why_silent(silent[0], stats)} " if silent else ""
        text = (f"The network has collapsed: {what} {self._duration('network', 'collapsed', step)}. {why}It cannot "
                f"recover by itself. {self._advice.restart(self.last_living)}")
        if self._advice.stops_on_collapse:
            raise Collapsed(text)
        return [text]

    @property
    def is_collapsed(self) -> bool:
        """Whether no gradient reached any weight in the last step that was looked at."""
        return ("network", "collapsed") in self._since

    def state(self) -> dict[str, Any]:
        """What a run that is continued goes on with, for `restore`: how long states have lasted, what was said of them,
        and the network as it was; plain JSON."""
        return {"since": [[*state, step] for state, step in self._since.items()], "said": sorted(map(list, self._said)),
                "alive": sorted(self._alive), "first_step": self._first_step, "start_norm": self._start_norm,
                "first_rate": self._first_rate, "last_living": self.last_living}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        self._since = {(layer, name): step for layer, name, step in state["since"]}
        self._said, self._alive = {(layer, name) for layer, name in state["said"]}, set(state["alive"])
        self._first_step, self._start_norm = state["first_step"], dict(state["start_norm"])
        self._first_rate = dict(state.get("first_rate", {}))  # which earlier versions did not keep
        self.last_living = state["last_living"]

    def saved(self, path: str | None) -> None:
        """Takes note of a checkpoint of this moment."""
        self.last_checkpoint = path
        if not self.is_collapsed and self._first_step is not None:
            self.last_living = path

    def refuse_collapsed_end(self, step: int) -> None:
        """A run that ends before a collapse has lasted long enough to be called one is none that has finished.

        Raises:
          Collapsed: the last step had no gradient, unless `config.on_collapse` is "continue".
        """
        if self.is_collapsed and self._advice.stops_on_collapse:
            lasting = self._duration("network", "collapsed", step)
            raise Collapsed(f"The network has collapsed: no gradient reaches any weight {lasting}, up to the last one. "
                            f"{self._advice.restart(self.last_living)}")

    # ---- causes ------------------------------------------------------------------------------------------------

    def _why_silent(self, layer: str, stats: Mapping[str, float]) -> str:
        grown = self._grown(layer, stats)
        if grown:
            return f"Likely cause: {grown}. {self._fate()} with {self._advice.smaller_steps()}."
        if layer in self._alive:
            return "It did fire earlier in this run, so updates have driven it there. " \
                   f"{self._fate()} with {self._advice.smaller_steps()}."
        return "Likely cause: the currents into it are too small for its threshold. Let it fire: " \
               f"{self._advice.louder(layer)}."

    def _fate(self) -> str:
        if self._fall:
            return "Its thresholds fall until it fires; if they do not help, start again"
        if self._advice.needs_spikes:
            return "Silent neurons get no gradient and stay silent: start again"
        return "If it does not recover, start again"

    def _why_saturated(self, layer: str, stats: Mapping[str, float]) -> str:
        grown, smaller_steps = self._grown(layer, stats), self._advice.smaller_steps()
        if grown or self._since[layer, "saturated"] != self._first_step:
            return f"Likely cause: {grown or 'updates that are too large'}. Start again with {smaller_steps}."
        if self._advice.normalised:
            return f"Use {smaller_steps}."
        return "Likely cause: the currents into it are far above its threshold. Make them smaller: " \
               f"{self._advice.quieter(layer)}."

    def _grown(self, layer: str, stats: Mapping[str, float]) -> str:
        """Says by how much the weights into `layer` (or, failing that, in front of it) have grown, if they have."""
        for name in self._feeding.get(layer, []):
            for weight, before in self._start_norm.items():
                now = stats.get(f"weight_norm/{weight}", 0.0)
                if weight in (name, f"{name}.kernel") and now > GROWTH * before > 0.0:
                    return f"updates that are too large: the weights of {name} have grown {factor(now / before)} " \
                           "since the start"
        return ""

    # ---- bookkeeping -------------------------------------------------------------------------------------------

    def _layers(self, stats: Mapping[str, float]) -> list[str]:
        """Spiking layers in the order of the forward pass."""
        return self._spiking or [_layer(name) for name in stats if name.startswith("rate/")]

    def _mark(self, layer: str, state: str, step: int, value: float, limit: float) -> None:
        """Notes that a state holds from `limit` on, and that it has ended a tenth below (values hover)."""
        if value >= limit:
            self._since.setdefault((layer, state), step)
        elif value < 0.9 * limit:
            self._since.pop((layer, state), None)
            self._said.discard((layer, state))

    def _due(self, layer: str, state: str, step: int, patience: int = PATIENCE) -> bool:
        since = self._since.get((layer, state))
        return since is not None and (layer, state) not in self._said and step - since >= patience

    def _duration(self, layer: str, state: str, step: int) -> str:
        steps = step - self._since[layer, state]
        return f"for {counted(steps, 'step')}" if steps else f"at step {step}"


# ---- words -------------------------------------------------------------------------------------------------------


def _layer(stat: str) -> str:
    return stat.split("/", 1)[1]


def _runs(layers: Sequence[str], holds: Callable[[str], bool]) -> list[list[str]]:
    """Stretches of neighbouring layers for which `holds`."""
    return [list(run) for found, run in itertools.groupby(layers, holds) if found]


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"
