"""e-prop, forward in time: the gradient of a window without its history (Bellec et al. 2020).

With s^in_t what a synapse carries, u_t, h and gain as in `tfspike.gradients`, and L the learning signal of a neuron:

    trace        x_t = lambda x_(t-1) + s^in_t                  of every input, leaking as the neurons behind do
    eligibility  e_t = gain h(x(u_t)) x_t                       of a weight from it: du_t/dw, the reset held constant
    gradient     dL/dw = sum over t of L e_t                    output neurons: sum over t of dL/dI_t s^in_t, exactly

Traces run along with the neurons, so that nothing grows with T: a second pass through the window, once its error is
known, adds up the gradient from the first step to the last. (The authors' networks have an error at every step and do
with one pass.) A layer hears of the error dL/do through a feedback of its own, not through the neurons behind it:

    symmetric    the weights of all layers behind, as if their neurons passed everything on
    random       fixed numbers of variance 1 / (neurons of the layer), evenly distributed: direct feedback alignment

With symmetric feedback the output layer and the hidden layer in front of it have exactly the gradient "event", which
sends dL/ds_t back through time; layers before these have not, whose signal passes neurons as if they were not there.
The trace is what a reset by subtraction leaves of inputs: with a reset to 0 it would differ between the neurons behind
one input, a number for every weight and record.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfspike.engine import plan as plans
from tfspike.engine import stepper
from tfspike.errors import UserError
from tfspike.neurons import noise
from tfspike.neurons.layers import SpikingLayer, Window
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime

Walk = Callable[[tf.Tensor, Callable[[plans.Call, tf.Tensor], tf.Tensor]], tf.Tensor]
ByCall = dict[plans.Call, tf.Tensor]


def leak_of(plan: plans.Plan) -> float:
    """The leak of all traces.

    Raises:
      UserError: a layer of the plan is not of networks that have one.
    """
    leaks: dict[float, str] = {}
    weighted: set[Any] = set()  # currents that come through weights
    for call in plan.window:
        if isinstance(call.layer, SpikingLayer):
            neuron = call.layer.neuron
            if weighted & set(call.sources):
                leaks[neuron.leak] = call.name
                if neuron.reset != "subtract":
                    raise UserError("gradient='eprop' takes neurons with reset='subtract', behind which a trace is the "
                                    f"same for all: {call.name} has reset={neuron.reset!r}.")
            continue
        if isinstance(call.layer, ThresholdNorm) or getattr(getattr(call.layer, "layer", None), "use_bias", False):
            raise UserError("gradient='eprop' takes synapses without bias and without normalisation: "
                            f"{call.name} is or has one.")
        if weighted & set(call.sources) or isinstance(call.layer, OverTime) and call.layer.weights:
            weighted.update(call.outputs)
    if plan.readout.layer.growth != 1.0:
        raise UserError(f"gradient='eprop' takes a readout that does not grow: {plan.readout.name} does.")
    if len(leaks) > 1:
        said = " and ".join(f"{name} has leak={leak:g}" for leak, name in leaks.items())
        raise UserError(f"gradient='eprop' takes one leak for all layers: {said}.")
    return next(iter(leaks), 1.0)


def learning_signals(plan: plans.Plan, walk: Walk, delta: tf.Tensor) -> ByCall:
    """L of every spiking layer, `[B, ...]` float32, from dL/dI of the output neurons, `[B, classes]`."""
    if plan.spiking[0].layer.feedback == "random":
        return {call: _random(call, delta, plan.encoder.layer.seed) for call in plan.spiking}
    passed: list[tf.Tensor] = []
    silence = tf.zeros((1, tf.shape(delta)[0], *plan.encoder.output.shape[2:]), plan.encoder.layer.compute_dtype)
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def pass_on(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            passed.append(tf.identity(currents))
            tape.watch(passed[-1])
            return passed[-1]

        current = walk(silence, pass_on)
    found = tape.gradient(current, passed, output_gradients=tf.cast(delta[tf.newaxis], current.dtype))
    return {call: tf.cast(signal[0], tf.float32) for call, signal in zip(plan.spiking, found)}


def _random(call: plans.Call, delta: tf.Tensor, seed: int) -> tf.Tensor:
    """Feedback that stays the same from step to step and from run to run of the same seed."""
    shape = call.output.shape[2:]
    neurons = math.prod(shape)
    key = tf.constant([seed, zlib.crc32(call.name.encode()) % 2**31], tf.int32)
    weights = (2.0 * noise.uniform((delta.shape[-1], neurons), key) - 1.0) * math.sqrt(3.0 / neurons)
    return tf.reshape(delta @ weights, (-1, *shape))


def backward(plan: plans.Plan, steps: tuple[int, int], encode: Callable[[tf.Tensor, int], tf.Tensor], walk: Walk,
             values: Sequence[tf.Tensor], membranes: list[tf.Tensor], delta: tf.Tensor,
             demands: dict[plans.Call, Any]) -> list[tf.Tensor]:
    """The gradient of the weights.

    Args:
      plan: of the network.
      steps: `(per chunk, in the last, shorter chunk)`.
      encode: gives steps of the window from the first one and their number on, `[steps, B, ...]`.
      walk: a train through all layers to the readout's current, given what neurons do; reads `values`.
      values: what the gradient is wanted of.
      membranes: before the first step, of every spiking layer, `[B, ...]` float32.
      delta: dL/dI of the output neurons at every step, `[B, classes]` float32.
      demands: what the loss asks of spikes directly (`records.Demand`), of the layers it asks anything of.
    """
    (chunk, rest), spiking, leak = steps, plan.spiking, leak_of(plan)
    count = plan.encoder.layer.timesteps // chunk
    signals = learning_signals(plan, walk, delta)
    batch = tf.shape(delta)[0]

    def body(i: tf.Tensor, steps: int, membranes: list[tf.Tensor], traces: list[tf.Tensor],
             sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
        before = dict(zip(spiking, membranes))
        fired: dict[plans.Call, Window] = {}
        driven: ByCall = {}

        def fire(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            fired[call] = stepper.fire(tf.stop_gradient(currents), before[call], call.layer.neuron)
            return fired[call].spikes

        def follow(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            driven[call] = currents
            return tf.cast(filtered[call], currents.dtype)

        train = tf.cast(encode(i * chunk, steps), plan.encoder.layer.compute_dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            current = walk(train, fire)
            trains = [train, *(fired[call].spikes for call in spiking)]
            of_encoder, *of_spikes = [_filtered(x, trace, leak) for x, trace in zip(trains, traces)]
            filtered = dict(zip(spiking, of_spikes))
            walk(tf.cast(of_encoder, train.dtype), follow)
        asked = [_asked(call, fired[call], signals[call], demands.get(call)) for call in spiking]
        grads = tape.gradient(
            [current, *(driven[call] for call in spiking)], values,
            output_gradients=[tf.cast(tf.repeat(delta[tf.newaxis], steps, axis=0), current.dtype),
                              *(tf.cast(c, driven[call].dtype) for c, call in zip(asked, spiking))],
            unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return (i + 1, [fired[call].membranes[-1] for call in spiking],
                [of_encoder[-1], *(train[-1] for train in of_spikes)],
                [total + tf.cast(grad, tf.float32) for total, grad in zip(sums, grads)])

    def zeros(call: plans.Call) -> tf.Tensor:
        return tf.zeros((batch, *call.output.shape[2:]), tf.float32)

    loop = (tf.constant(0), membranes, [zeros(call) for call in (plan.encoder, *spiking)],
            [tf.zeros(value.shape, tf.float32) for value in values])
    loop = tf.while_loop(lambda i, *_: i < count, lambda i, *carried: body(i, chunk, *carried), loop,
                         maximum_iterations=count, parallel_iterations=1)
    return (body(loop[0], rest, *loop[1:]) if rest else loop)[3]


def _filtered(train: tf.Tensor, before: tf.Tensor, leak: float) -> tf.Tensor:
    """x_t at every step of a train `[steps, B, ...]`, float32, from the trace in front of its first."""
    found = []
    for spikes in tf.unstack(train):
        before = leak * before + tf.cast(spikes, tf.float32)
        found.append(before)
    return tf.stack(found)


def _asked(call: plans.Call, fired: Window, signal: tf.Tensor, demand: Any) -> tf.Tensor:
    """gain h L at every step, `[steps, B, ...]` float32: what the traces are multiplied with."""
    rule = call.layer.neuron.slope_rule
    signal = signal[tf.newaxis]
    if demand is not None:
        signal += tf.cast(demand.upstream(fired.spikes, 1), tf.float32)
    return rule.gain * rule.derivative(tf.stack(fired.potentials)) * signal

