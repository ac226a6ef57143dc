"""The fast road: one loop over time around the whole net, in chunks of steps that fit the cache.

Layer by layer, every layer's whole spike train exists at once and memory grows with T times the net. Here a chunk of a
few steps runs through all layers, each neuron's state (membrane, count, trace) is carried to the next chunk, and the
chunk is forgotten but for what the backward pass needs:

* "rate" needs the counts and traces of the final state alone. It backpropagates once, through mean rates, as in an
  ordinary net of the same shape: memory and time of the backward pass do not grow with T.
* "event" needs the spikes, kept as one bit per neuron and step, and of a neuron with a surrogate h(x_t) at every step.
  A second loop goes over the chunks from the last to the first, gives each layer its recorded spikes, and carries delta
  to the chunk before. The forward convolutions of this pass are never used and never computed.

A normalisation looks at a whole window before the next layer may begin, so in training such a net runs in one chunk,
whose memory grows with T. With "event" a window of more than 8 steps is trained layer by layer instead
(`Engine.can_train`), as a chunk's spikes are the bits of one byte.

The values are those of the layer-by-layer road (`tfspike.gradients`); tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfspike.engine import convolution, kernels
from tfspike.engine import plan as plans
from tfspike.errors import UserError
from tfspike.neurons import gradients
from tfspike.neurons.custom_gradient import custom_gradient
from tfspike.neurons.gradients import NeuronState
from tfspike.neurons.layers import OverTime, SpikingLayer, WindowDropout
from tfspike.neurons.normalisation import ThresholdNorm


class Record(NamedTuple):
    """What a forward pass leaves behind.

    Attributes:
      output: V_T / T, `[B, classes]` float32.
      states: final state of every spiking layer, in the order of the forward pass.
      input_rate: mean of the encoded input over the window, `[B, ...]`.
      bits: recorded spikes of every spiking layer, `[chunks, B, ...]` uint8; empty unless asked for.
      derivatives: recorded h(x_t) of every spiking layer with a surrogate, `[chunks, steps, B, ...]`, 0 behind the
        last step; empty unless asked for.
      moments: mean and variance of every normalisation, in the order of the forward pass; empty in inference.
      penalties: what the `activity_regularizer`s add to the loss, one number for every call in `Engine.penalised`.
    """

    output: tf.Tensor
    states: list[NeuronState]
    input_rate: tf.Tensor
    bits: list[tf.Tensor]
    derivatives: list[tf.Tensor]
    moments: list[tuple[tf.Tensor, tf.Tensor]]
    penalties: Sequence[tf.Tensor] = ()


class Demand(NamedTuple):
    """What the loss asks of the spikes of one layer directly, besides what comes through the layers behind it.

    Attributes:
      of_count: dL/dN, `[B, ...]`, the same for the spikes of all steps; None where nothing depends on N.
      of_spikes: dL/d(sum of s_t^2 / 2), a number; None where the layer has no penalty.
    """

    of_count: tf.Tensor | None
    of_spikes: tf.Tensor | None

    def upstream(self, spikes: tf.Tensor, factor: int) -> tf.Tensor:
        """dL/ds_t of spikes `[steps, B, ...]` for a factor of 1; dL/dr of rates `[1, B, ...]` for a factor of T."""
        asked = tf.zeros([1], tf.float32)
        if self.of_count is not None:
            asked += self.of_count[tf.newaxis]
        if self.of_spikes is not None:
            asked += self.of_spikes * tf.cast(spikes, tf.float32)
        return tf.broadcast_to(tf.cast(factor * asked, spikes.dtype), tf.shape(spikes))


class Engine:
    """Runs the window of a plan in chunks of time.

    Args:
      plan: what to run.
      gradient: "event" or "rate".
      chunk: steps per chunk; None chooses by the size of the largest layer.
      kernel: how a chunk of neurons is computed, see `tfspike.kernels`.
    """

    def __init__(self, plan: plans.Plan, gradient: str, chunk: int | None = None, kernel: str = "auto"):
        self.plan = plan
        self.gradient = gradient
        self.timesteps: int = plan.encoder.layer.timesteps
        self.chunk = chunk
        self.kernel = kernels.choose(kernel)
        self._sizes = kernels.BatchSizes() if kernel == "auto" else None

    @property
    def can_train(self) -> bool:
        """Whether training takes this road; inference always does."""
        return not (self.gradient == "event" and self.plan.norms and self.timesteps > kernels.MOST_STEPS)

    @property
    def penalised(self) -> list[plans.Call]:
        """Spiking layers with a penalty of their spikes."""
        return [call for call in self.plan.spiking if call.layer.activity_regularizer is not None]

    @property
    def _with_surrogate(self) -> list[plans.Call]:
        """Spiking layers with a surrogate."""
        return [call for call in self.plan.spiking if call.layer.neuron.slope_rule.needs_potential]

    @property
    def _held(self) -> list[Any]:
        """Variables of the window's layers, each once."""
        return list({id(variable): variable for call in self.plan.window for variable in call.layer.variables}.values())

    # ---- public ------------------------------------------------------------------------------------------------

    def run(self, inputs: tf.Tensor, training: bool, seed: Any = None, weights: Sequence[Any] = (),
            counted: bool = False) -> Record:
        """Runs the window; output and penalties are differentiable in the trainable variables among `weights`.

        In inference nothing is kept for a gradient: who asks for one pays for a second forward pass.

        Args:
          inputs: what the encoder takes, `[B, ...]`; no gradient flows there.
          training: draw fresh noise and dropout masks and keep what the backward pass needs.
          seed: keys the encoder's noise in inference.
          weights: trainable Keras variables.
          counted: the counts of the states are differentiable too.

        Raises:
          UserError: a layer of the window adds a loss of its own.
        """
        inputs = tf.stop_gradient(inputs)
        key = self.plan.encoder.layer.key(training, seed)
        masks = self._draw_masks(tf.shape(inputs)[0]) if training else {}
        final: list[Any] = []
        penalised = self.penalised
        keep_bits = self.gradient == "event"
        weights, frozen = self._split(weights)
        constants = [tf.stop_gradient(tf.convert_to_tensor(variable.value)) for variable in frozen]
        fixed = list(zip(frozen, constants))

        @custom_gradient
        def window(*values: tf.Tensor):
            # In inference weights are cast once, not once per chunk
            cast = (values, fixed) if training else (
                self._cast(weights, values), list(zip(frozen, self._cast(frozen, constants))))

            def forward(keep: bool) -> Record:
                kernel = self.kernel
                if not keep and self._sizes is not None and not self._sizes.are_usual(inputs.shape[0]):
                    kernel = "plain"
                with _substituted(weights, *cast) as scope:
                    record = self._forward(inputs, key, masks, keep and keep_bits, training, keep, kernel)
                if scope.losses:
                    raise UserError("A layer within OverTime calls `add_loss`, which would be lost in chunks of time. "
                                    "Give the penalty as its `activity_regularizer`, or take a subclass of OverTime "
                                    "with a `call` of its own: such models are computed layer by layer.")
                return record

            record = forward(keep=training)

            def grad(upstream: tf.Tensor, _: Any, *others: Any) -> list[tf.Tensor]:
                kept = record if training else forward(keep=True)
                backward = self._backward_event if keep_bits else self._backward_rate
                demands = self._demands(penalised, others, tf.shape(inputs)[0], counted)
                return backward(kept, inputs, key, masks, weights, values, fixed, upstream, demands, training)

            fired = [_spikes_per_record(state.count) for call, state in zip(self.plan.spiking, record.states)
                     if call in penalised]
            flat = [part for group in (*record.states, *record.moments) for part in group]
            return (record.output, record.input_rate, *fired, *flat), grad

        output, input_rate, *final = window(*[tf.convert_to_tensor(weight.value) for weight in weights])
        fired, final = final[:len(penalised)], final[len(penalised):]
        penalties = [_penalty(call.layer.activity_regularizer, spikes) for call, spikes in zip(penalised, fired)]
        count = 3 * len(self.plan.spiking)
        final = [part if counted and i < count and i % 3 == 1 else tf.stop_gradient(part)
                 for i, part in enumerate(final)]
        states = [NeuronState(*final[i:i + 3]) for i in range(0, count, 3)]
        moments = list(zip(final[count::2], final[count + 1::2]))
        if training:
            for call, (mean, variance) in zip(self.plan.norms, moments):
                call.layer.follow(mean, variance)
        return Record(output, states, tf.stop_gradient(input_rate), [], [], moments, penalties)

    # ---- forward -----------------------------------------------------------------------------------------------

    def _cast(self, variables: Sequence[Any], values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.cast(value, dtype) for value, dtype in zip(values, self._compute_dtypes(variables))]

    def _forward(self, inputs: tf.Tensor, key: tf.Tensor, masks: dict[int, tf.Tensor], keep_bits: bool,
                 training: bool, sense: bool, kernel: str) -> Record:
        chunk, rest = self.chunks(inputs.shape[0], training)
        count = self.timesteps // chunk
        batch = tf.shape(inputs)[0]
        states = [gradients.zero_state((batch, *_feature_shape(call))) for call in self.plan.spiking]
        membrane = tf.zeros((batch, *_feature_shape(self.plan.readout)), tf.float32)
        total = tf.zeros((batch, *self.plan.encoder.outputs[0].shape[2:]), tf.float32)
        chunks = count + (rest > 0)
        recorded = [tf.TensorArray(tf.uint8, size=chunks) for _ in states] if keep_bits else []
        sensed = [tf.TensorArray(call.layer.compute_dtype, size=chunks)
                  for call in self._with_surrogate] if keep_bits else []
        moments: list[tuple[tf.Tensor, tf.Tensor]] = []

        def measure(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            normalised, *of_window = call.layer.standardise(currents)
            moments.append(tuple(of_window))
            return normalised

        def body(i: tf.Tensor, steps: int, states: list[NeuronState], membrane: tf.Tensor, total: tf.Tensor,
                 recorded: list[tf.TensorArray], sensed: list[tf.TensorArray]) -> Any:
            train = self.plan.encoder.layer.encode(inputs, key, i * chunk, steps)
            norms = measure if training else None
            states, current, bits, sensitivities = self._simulate(train, states, masks, keep_bits, norms, sense, kernel)
            for t in range(steps):
                membrane = self.plan.readout.layer.leak * (membrane + tf.cast(current[t], tf.float32))
            total = total + tf.reduce_sum(tf.cast(train, tf.float32), axis=0)
            recorded = [array.write(i, bit) for array, bit in zip(recorded, bits)]
            sensed = [array.write(i, _padded(values, chunk)) for array, values in zip(sensed, sensitivities)]
            return i + 1, states, membrane, total, recorded, sensed

        loop = (tf.constant(0), states, membrane, total, recorded, sensed)
        if count == 1:  # without a loop: the moments of a window in one chunk can leave it
            loop = body(loop[0], chunk, *loop[1:])
        else:
            loop = tf.while_loop(lambda i, *_: i < count, lambda i, *carried: body(i, chunk, *carried), loop,
                                 maximum_iterations=count, parallel_iterations=1)
        if rest:
            loop = body(loop[0], rest, *loop[1:])
        _, states, membrane, total, recorded, sensed = loop
        return Record(membrane / self.timesteps, [NeuronState(*state) for state in states], total / self.timesteps,
                      [array.stack() for array in recorded], [array.stack() for array in sensed], moments)

    def _simulate(self, train: tf.Tensor, states: list[NeuronState], masks: dict[int, tf.Tensor], keep_bits: bool,
                  norms: Any, sense: bool,
                  kernel: str) -> tuple[list[NeuronState], tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """A chunk through all layers: `(new states, readout current, bits, sensitivities)`; `norms` is None in
        inference, `sense` says whether states keep what "rate" needs of a surrogate."""
        pending = iter(states)
        after: list[NeuronState] = []
        bits: list[tf.Tensor] = []
        sensitivities: list[tf.Tensor] = []

        def neurons(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            before, neuron = next(pending), call.layer.neuron
            if keep_bits and neuron.surrogate != LEAK_AWARE:
                sensitivities.append(kernels.sensitivities(currents, before.membrane, neuron, kernel))
            spikes, state, packed = kernels.fire(currents, before, neuron, keep_bits, kernel,
                                                 sense=sense and not keep_bits)
            after.append(state)
            bits.append(packed)
            return spikes

        current = self._walk(train, masks, neurons, norms)
        return after, current, bits if keep_bits else [], sensitivities

    # ---- backward ----------------------------------------------------------------------------------------------

    def _backward_rate(self, record: Record, inputs: tf.Tensor, key: tf.Tensor, masks: dict[int, tf.Tensor],
                       weights: Sequence[Any], values: Sequence[tf.Tensor], fixed: Sequence[Any],
                       upstream: tf.Tensor, demands: dict[int, Demand], training: bool) -> list[tf.Tensor]:
        """Once through means: a "window" of one step whose spikes are the rates."""
        rates = {id(call): state.count / self.timesteps for call, state in zip(self.plan.spiking, record.states)}
        variances = {id(call): variance for call, (_, variance) in zip(self.plan.norms, record.moments)}
        slopes = self._slopes(record)

        def neurons(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            rate = tf.cast(rates[id(call)][tf.newaxis], currents.dtype)
            return kernels.replay_rate(currents, rate, slopes[id(call)])

        def norms(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            return call.layer.normalise_rate(currents, variances[id(call)])

        return self._gradient(record.input_rate[tf.newaxis], masks, neurons, norms if training else None, weights,
                              values, fixed, upstream[tf.newaxis], demands, self.timesteps)

    def _backward_event(self, record: Record, inputs: tf.Tensor, key: tf.Tensor, masks: dict[int, tf.Tensor],
                        weights: Sequence[Any], values: Sequence[tf.Tensor], fixed: Sequence[Any],
                        upstream: tf.Tensor, demands: dict[int, Demand], training: bool) -> list[tf.Tensor]:
        """Chunk by chunk from the last to the first, on the recorded spikes."""
        chunk, rest = self.chunks(inputs.shape[0], training)
        count = self.timesteps // chunk
        slopes = self._slopes(record)
        values = self._cast(weights, values)
        spiking = self.plan.spiking

        def body(i: tf.Tensor, steps: int, carries: list[tf.Tensor], sums: list[tf.Tensor]) -> Any:
            train = self.plan.encoder.layer.encode(inputs, key, i * chunk, steps)
            packed = {id(call): bits[i] for call, bits in zip(spiking, record.bits)}
            sensitivities = {id(call): values[i][:steps]
                             for call, values in zip(self._with_surrogate, record.sensitivities)}
            carried = {id(call): carry for call, carry in zip(spiking, carries)}
            first: dict[int, tf.Tensor] = {}

            def neurons(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
                bits, carry = packed[id(call)], carried[id(call)]

                def give(delta: tf.Tensor) -> None:
                    first[id(call)] = delta

                if id(call) in sensitivities:
                    return kernels.replay_through_time(currents, bits, sensitivities[id(call)], call.layer.neuron,
                                                       carry, give, self.kernel)
                return kernels.replay_event(currents, bits, slopes[id(call)], carry, give, self.kernel)

            def norms(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
                return call.layer.standardise(currents)[0]

            delta = tf.repeat(upstream[tf.newaxis] / self.timesteps, steps, axis=0)
            grads = self._gradient(train, masks, neurons, norms if training else None, weights, values, fixed, delta,
                                   demands)
            # None of a neuron that no trained weight lies in front of: nobody asks for its delta
            carries = [first.get(id(call), carry) for call, carry in zip(spiking, carries)]
            return i - 1, carries, [total + tf.cast(grad, tf.float32) for total, grad in zip(sums, grads)]

        loop = (tf.constant(count), [tf.zeros_like(state.membrane) for state in record.states],
                [tf.zeros(value.shape, tf.float32) for value in values])
        loop = body(loop[0], rest, *loop[1:]) if rest else (loop[0] - 1, *loop[1:])
        if count == 1:
            return body(loop[0], chunk, *loop[1:])[2]
        loop = tf.while_loop(lambda i, *_: i >= 0, lambda i, *carried: body(i, chunk, *carried), loop,
                             maximum_iterations=count, parallel_iterations=1)
        return loop[2]

    def _gradient(self, train: tf.Tensor, masks: dict[int, tf.Tensor], neurons: Any, norms: Any,
                  weights: Sequence[Any], values: Sequence[tf.Tensor], fixed: Sequence[Any],
                  delta: tf.Tensor, demands: dict[int, Demand], factor: int = 1) -> list[tf.Tensor]:
        """Gradient of the weights for `delta` = dL/dI of the readout, `[steps, B, classes]`, and for what the loss asks
        of spikes (`Demand.upstream`), on recorded activity."""
        trains: list[tf.Tensor] = []
        asked: list[tf.Tensor] = []

        def watched(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            spikes = neurons(call, currents)
            if id(call) in demands:
                trains.append(spikes)
                asked.append(demands[id(call)].upstream(spikes, factor))
            return spikes

        train = tf.cast(train, self.plan.encoder.layer.compute_dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            with _substituted(weights, values, fixed):
                current = self._walk(train, masks, watched, norms, self._synapse)
        return tape.gradient([current, *trains], values, output_gradients=[tf.cast(delta, current.dtype), *asked],
                             unconnected_gradients=tf.UnconnectedGradients.ZERO)

    # ---- helpers -----------------------------------------------------------------------------------------------

    def _walk(self, train: tf.Tensor, masks: dict[int, tf.Tensor], neurons: Any, norms: Any = None,
              synapses: Any = plans.plain) -> tf.Tensor:
        """A stretch of the encoded input through all layers to the readout's current.

        Neurons do as `neurons` says, normalisations as `norms` does (None: with the running statistics), and the rest
        as `synapses` does.
        """

        def handler(call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if isinstance(call.layer, SpikingLayer):
                return neurons(call, tf.cast(args[0], call.layer.compute_dtype))
            if norms is not None and isinstance(call.layer, ThresholdNorm) and call.layer.trainable:
                return norms(call, args[0])
            if isinstance(call.layer, WindowDropout):
                return call.layer(args[0], window_mask=masks.get(id(call)))
            return synapses(call, args, kwargs)

        values = plans.run(self.plan.window, {id(self.plan.encoder.outputs[0]): train}, handler)
        return values[id(self.plan.readout.args[0])]

    def _synapse(self, call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer of the backward pass, whose convolutions may get their gradient in a faster way."""
        over = call.layer
        if self.kernel == "xla" and isinstance(over, OverTime) and convolution.gains(over.layer, args[0].shape,
                                                                                    over.compute_dtype):
            kernel = tf.cast(over.layer.kernel.value, over.compute_dtype)
            return over.fold(args[0], lambda images: convolution.convolve(images, kernel, over.layer.strides[0],
                                                                          over.layer.padding))
        return plans.plain(call, args, kwargs)

    def _demands(self, penalised: list[plans.Call], upstream: Sequence[tf.Tensor], batch: tf.Tensor,
                 counted: bool) -> dict[int, Demand]:
        """What the gradients of `run`'s further outputs ask of the spikes, by the call's `id`."""
        of_spikes = {id(call): g / tf.cast(batch, tf.float32) for call, g in zip(penalised, upstream)}
        of_count = dict(zip(map(id, self.plan.spiking), upstream[len(penalised) + 1::3])) if counted else {}
        return {key: Demand(of_count.get(key), of_spikes.get(key)) for key in of_count.keys() | of_spikes.keys()}

    def _slopes(self, record: Record) -> dict[int, tf.Tensor]:
        return {id(call): gradients.slope(state.count, state.trace, call.layer.neuron, self.timesteps)
                for call, state in zip(self.plan.spiking, record.states)}

    def _split(self, weights: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """`(variables of the window that are trained, the others)`: a custom gradient must read no variable itself."""
        wanted = {id(weight) for weight in weights}
        return [v for v in self._held if id(v) in wanted], [v for v in self._held if id(v) not in wanted]

    def _compute_dtypes(self, weights: Sequence[Any]) -> list[str]:
        """Weights of synapses are cast to their layer's compute dtype once, not once per chunk."""
        dtypes = {id(variable): call.layer.compute_dtype for call in self.plan.window
                  for variable in call.layer.variables if isinstance(call.layer, OverTime)}
        return [dtypes.get(id(weight), weight.dtype) for weight in weights]

    def _draw_masks(self, batch: tf.Tensor) -> dict[int, tf.Tensor]:
        return {id(call): call.layer.draw_mask((batch, *_feature_shape(call)))
                for call in self.plan.dropouts if call.layer.rate > 0.0}

    def chunks(self, batch: int | None, training: bool = False) -> tuple[int, int]:
        """`(steps per chunk, steps in the last, shorter chunk)` for a batch of this size."""
        if training and self.plan.norms:
            return self.timesteps, 0
        if self.chunk is not None:
            chunk = min(self.chunk, self.timesteps, kernels.MOST_STEPS)
        else:
            largest = max(_size(_feature_shape(call)) for call in self.plan.spiking)
            chunk = kernels.choose_chunk(self.timesteps, (batch or 32) * largest)
        return chunk, self.timesteps % chunk


def _feature_shape(call: plans.Call) -> tuple[int, ...]:
    """Shape of one sample at one step of what a layer of the window takes, without T and B."""
    return tuple(call.args[0].shape[2:])


def _spikes_per_record(count: tf.Tensor) -> tf.Tensor:
    """Spikes of a layer and window per record, one number."""
    return tf.reduce_sum(count) / tf.cast(tf.shape(count)[0], tf.float32)


def _penalty(regularizer: Any, spikes: tf.Tensor) -> tf.Tensor:
    """What L1, L2 or L1L2 make of a number of spikes, whose gradient is that of the sum of s^2 / 2 (`Demand`).

    A spike is its own size, its own square, and its own sign: in Keras too a step without a spike has no gradient.
    """
    l1, l2 = getattr(regularizer, "l1", 0.0), getattr(regularizer, "l2", 0.0)
    return (l1 + 2.0 * l2) * spikes - tf.stop_gradient(l2 * spikes)


def _padded(values: tf.Tensor, steps: int) -> tf.Tensor:
    """A chunk's values with as many steps as every other chunk has."""
    missing = steps - values.shape[0]
    return tf.pad(values, [[0, missing], *[[0, 0]] * (values.shape.rank - 1)]) if missing else values


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _substituted(weights: Sequence[Any], values: Sequence[tf.Tensor], fixed: Sequence[Any]) -> Any:
    """Within it layers read `values` where they would read the variables `weights`; `fixed` are pairs of the frozen."""
    return keras.StatelessScope(state_mapping=[*zip(weights, values), *fixed], collect_losses=True)
