"""The fast path: one loop over time around the whole net, in chunks of steps that fit the cache.

Layer by layer, every layer's whole spike train exists at once and memory grows with T times the net. Here a chunk of a
few steps runs through all layers, each neuron's state (membrane, count, trace) is carried to the next chunk, and the
chunk is forgotten but for what the backward pass needs:

* "rate" needs the counts and traces of the final state alone. It backpropagates once, through mean rates, as in an
  ordinary net of the same shape: memory and time of the backward pass do not grow with T.
* "eprop" keeps nothing: a second pass from the first step to the last adds it up (`tfspike.engine.eprop`).
* "event" needs the spikes, kept as one bit per neuron and step, and of a neuron with a surrogate h(x_t) at every step.
  A second loop goes over the chunks from the last to the first, gives each layer its recorded spikes, and carries delta
  to the chunk before. The forward convolutions of this pass are never used and never computed.

A normalisation looks at a whole window before the next layer may begin, so in training such a net runs in one chunk,
whose memory grows with T. With "event" a window of more than 8 steps is trained layer by layer instead
(`Engine.can_train`), as a chunk's spikes are the bits of one byte.

The values are those of the layer-by-layer path (`tfspike.gradients`); tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfspike.engine import convolution, eprop, kernels
from tfspike.engine import plan as plans
from tfspike.engine.events.runner import Runner
from tfspike.engine.records import Carried, Demand, Given, Outputs, Record
from tfspike.errors import UserError
from tfspike.neurons import gradients, once
from tfspike.neurons.custom_gradient import custom_gradient
from tfspike.neurons.gradients import NeuronState
from tfspike.neurons.layers import SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.neurons.over_time import OverTime, WindowDropout


class Engine:
    """Runs the window of a plan in chunks of time.

    Args:
      plan: what to run.
      gradient: "event", "rate" or "eprop".
      chunk: steps per chunk; None chooses by the size of the largest layer.
      kernel: how a chunk of neurons is computed, see `tfspike.kernels`.
    """

    def __init__(self, plan: plans.Plan, gradient: str, chunk: int | None = None, kernel: str = "auto"):
        self.plan = plan
        self.gradient = gradient
        self.timesteps: int = plan.encoder.layer.timesteps
        self.chunk = chunk
        self.kernel = kernels.choose(kernel)
        self._sizes = kernels.BatchSizes() if kernel in kernels.CHOSEN_BY_DEVICE else None
        self.events = Runner(plan, gradient) if kernel == "events" else None
        if gradient == "eprop":
            eprop.leak_of(plan)

    def refusal_of_events(self, training: bool) -> str | None:
        """Why kernel="events", which was asked for, is not what runs, in a sentence; None where it is, or was not."""
        return None if self.events is None else self.events.hindrance(training)

    @property
    def can_train(self) -> bool:
        """Whether training takes this path; inference always does."""
        return not (self.gradient == "event" and self.plan.norms and self.timesteps > kernels.MOST_STEPS)

    @property
    def penalised(self) -> list[plans.Call]:
        """Spiking layers with a penalty of their spikes."""
        return [call for call in self.plan.spiking if call.layer.activity_regularizer is not None]

    @property
    def _with_surrogate(self) -> list[plans.Call]:
        """Spiking layers with a surrogate."""
        return [call for call in self.plan.spiking if call.layer.neuron.slope_rule.needs_potential]

    def _to_readout(self, upstream: tf.Tensor, first: tf.Tensor, steps: int) -> tf.Tensor:
        """dL/dI_t of the readout, `[steps, B, classes]` from step `first` on, for dL/do `[B, classes]`; its leak is
        ignored, its growth is not (`gradients.readout_window`)."""
        delta, growth = upstream[tf.newaxis] / self.timesteps, self.plan.readout.layer.growth
        if growth == 1.0:
            return tf.repeat(delta, steps, axis=0)
        weights = tf.slice(tf.constant(once.weights(self.timesteps, growth)), [first], [steps])
        return weights[:, tf.newaxis, tf.newaxis] * delta

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
        penalised = self.penalised
        weights, frozen = self._split(weights)
        fixed = [(variable, tf.stop_gradient(tf.convert_to_tensor(variable.value))) for variable in frozen]
        like = Outputs(0, 0, [0] * len(penalised), [NeuronState(0, 0, 0)] * len(self.plan.spiking),
                        [(0, 0)] * len(self.plan.norms) if training else [])

        @custom_gradient
        def window(*values: tf.Tensor):
            given = Given(inputs, key, masks, training, weights, values, fixed)
            record = self._forward(given, keep=training)

            def grad(*upstream: tf.Tensor) -> list[tf.Tensor]:
                asked = tf.nest.pack_sequence_as(like, upstream)
                kept = record if training else self._forward(given, keep=True)
                backward = {"event": self._backward_event, "rate": self._backward_rate,
                            "eprop": self._backward_eprop}[self.gradient]
                if self.gradient == "event" and kept.passed is not None:
                    backward = self._backward_by_events
                return backward(kept, given, asked.output, self._demands(asked, penalised, counted))

            states = dict(zip(self.plan.spiking, record.states))
            fired = [tf.reduce_sum(states[call].count) / _records(inputs) for call in penalised]
            outputs = Outputs(record.output, record.input_rate, fired, record.states, record.moments)
            return tuple(tf.nest.flatten(outputs)), grad

        found = tf.nest.pack_sequence_as(like, window(*[tf.convert_to_tensor(weight.value) for weight in weights]))
        penalties = [_penalty(call.layer.activity_regularizer, spikes) for call, spikes in zip(penalised, found.fired)]
        fixed_states, moments = tf.nest.map_structure(tf.stop_gradient, (found.states, found.moments))
        states = [state._replace(count=of.count) if counted else state
                  for state, of in zip(fixed_states, found.states)]
        if training:
            for call, state in zip(self.plan.spiking, fixed_states):
                call.layer.follow(state)
            for call, (mean, variance) in zip(self.plan.norms, moments):
                call.layer.update_moving_statistics(mean, variance)
        return Record(found.output, states, tf.stop_gradient(found.input_rate), [], [], moments, penalties)

    # ---- forward -----------------------------------------------------------------------------------------------

    def _forward(self, given: Given, keep: bool) -> Record:
        """The window, and with `keep` what the backward pass needs."""
        kernel = self.kernel
        if not keep and self._sizes is not None and not self._sizes.are_usual(given.inputs.shape[0]):
            kernel = "plain"
        if not given.training:  # weights are cast once, not once per chunk
            frozen, constants = zip(*given.fixed) if given.fixed else ((), ())
            given = given._replace(values=self._cast(given.weights, given.values),
                                   fixed=list(zip(frozen, self._cast(frozen, constants))))
        by_events = self.events is not None and keep == given.training and not self.events.hindrance(given.training)
        with given.substituted() as scope:
            if by_events:
                record = self._by_events(given)
            else:
                record = self._in_chunks(given, self.gradient if keep else None, kernel)
        if scope.losses:
            raise UserError("A layer within OverTime calls `add_loss`, which would be lost in chunks of time. "
                            "Give the penalty as its `activity_regularizer`, or take a subclass of OverTime "
                            "with a `call` of its own: such models are computed layer by layer.")
        return record

    def _by_events(self, given: Given) -> Record:
        """The whole window on the event-driven path."""
        assert self.events is not None
        kept = self.gradient if given.training else None
        passed = self.events.forward(given.inputs, given.key, given.masks, given.training, traced=kept == "rate",
                                     recorded=kept == "event")
        return Record(passed.output, passed.states, passed.input_rate, [], [], [], passed=passed)

    def _in_chunks(self, given: Given, keep: str | None, kernel: str) -> Record:
        """Chunk after chunk from the first step to the last; `keep` is the gradient that will be asked for."""
        chunk, rest = self.chunks(given.inputs.shape[0], given.training)
        count = self.timesteps // chunk
        chunks = count + (rest > 0)
        batch = tf.shape(given.inputs)[0]
        spiking, with_surrogate = self.plan.spiking, self._with_surrogate
        moments: list[tuple[tf.Tensor, tf.Tensor]] = []

        def measure(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            normalised, *of_window = call.layer.standardise(currents)
            moments.append(tuple(of_window))
            return normalised

        def body(i: tf.Tensor, steps: int, before: Carried) -> tuple[tf.Tensor, Carried]:
            train = self.plan.encoder.layer.stretch(given.inputs, given.key, i * chunk, steps)
            states = dict(zip(spiking, before.states))
            fired: dict[plans.Call, kernels.Fired] = {}

            def neurons(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
                fired[call] = kernels.fire(currents, states[call], call.layer.neuron, keep, kernel)
                return fired[call].spikes

            current = self._walk(train, given.masks, neurons, measure if given.training else None)
            membrane = before.membrane
            for t in range(steps):
                membrane = gradients.integrate(membrane, current[t], self.plan.readout.layer.factor)
            return i + 1, Carried(
                [fired[call].state for call in spiking], membrane,
                before.total + tf.reduce_sum(tf.cast(train, tf.float32), axis=0),
                [array.write(i, kernels.stored(fired[call].bits, kernel)) for call, array in zip(spiking, before.bits)],
                [array.write(i, _padded(fired[call].derivatives, chunk))
                 for call, array in zip(with_surrogate, before.derivatives)])

        keep_steps = keep == "event"
        loop = (tf.constant(0), Carried(
            [call.layer.get_initial_state((batch, *_feature_shape(call))) for call in spiking],
            tf.zeros((batch, *_feature_shape(self.plan.readout)), tf.float32),
            tf.zeros((batch, *self.plan.encoder.output.shape[2:]), tf.float32),
            [tf.TensorArray(kernels.STORED[kernel], size=chunks) for _ in spiking if keep_steps],
            [tf.TensorArray("float32" if call.layer.learnt else call.layer.compute_dtype, size=chunks)
             for call in with_surrogate if keep_steps]))
        if count == 1:  # without a loop: the moments of a window in one chunk can leave it
            loop = body(loop[0], chunk, loop[1])
        else:
            loop = tf.while_loop(lambda i, _: i < count, lambda i, carried: body(i, chunk, carried), loop,
                                 maximum_iterations=count, parallel_iterations=1)
        i, after = loop
        if rest:
            _, after = body(i, rest, after)
        return Record(after.membrane / self.timesteps, after.states, after.total / self.timesteps,
                      [array.stack() for array in after.bits], [array.stack() for array in after.derivatives], moments)

    # ---- backward ----------------------------------------------------------------------------------------------

    def _backward_rate(self, record: Record, given: Given, upstream: tf.Tensor,
                       demands: dict[plans.Call, Demand]) -> list[tf.Tensor]:
        """Once through means: a "window" of one step whose spikes are the rates."""
        states = dict(zip(self.plan.spiking, record.states))
        variances = {call: variance for call, (_, variance) in zip(self.plan.norms, record.moments)}

        def neurons(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            rate = tf.cast(states[call].count[tf.newaxis] / self.timesteps, currents.dtype)
            return kernels.replay_rate(currents, rate, states[call], call.layer.neuron, self.timesteps)

        def norms(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            return call.layer.normalise_rate(currents, variances[call])

        delta, growth = upstream[tf.newaxis], self.plan.readout.layer.growth
        if growth != 1.0:
            delta *= float(once.weights(self.timesteps, growth).mean())
        return self._gradient(record.input_rate[tf.newaxis], given, neurons, norms, delta, demands, self.timesteps)

    def _backward_event(self, record: Record, given: Given, upstream: tf.Tensor,
                        demands: dict[plans.Call, Demand]) -> list[tf.Tensor]:
        """Chunk by chunk from the last to the first, on the recorded spikes."""
        chunk, rest = self.chunks(given.inputs.shape[0], given.training)
        count = self.timesteps // chunk
        given = given._replace(values=self._cast(given.weights, given.values))
        spiking = self.plan.spiking
        with given.substituted():
            with_surrogate, slopes = self._with_surrogate, self._slopes(record)

        def body(i: tf.Tensor, steps: int, carries: list[tf.Tensor],
                 sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
            train = self.plan.encoder.layer.stretch(given.inputs, given.key, i * chunk, steps)
            bits = {call: kernels.restored(bits[i], state.membrane, self.kernel)
                    for call, bits, state in zip(spiking, record.bits, record.states)}
            known = {**slopes, **{call: derivatives[i][:steps] for call, derivatives
                                  in zip(with_surrogate, record.derivatives)}}
            behind = dict(zip(spiking, carries))
            first: dict[plans.Call, tf.Tensor] = {}

            def neurons(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
                return kernels.replay_event(currents, bits[call], known[call], behind[call], call.layer.neuron,
                                            lambda delta: first.update({call: delta}), self.kernel)

            def norms(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
                return call.layer.standardise(currents)[0]

            delta = self._to_readout(upstream, i * chunk, steps)
            grads = self._gradient(train, given, neurons, norms, delta, demands)
            # None of a neuron that no trained weight lies in front of: nobody asks for its delta
            carries = [first.get(call, carry) for call, carry in behind.items()]
            return i - 1, carries, [total + tf.cast(grad, tf.float32) for total, grad in zip(sums, grads)]

        loop = (tf.constant(count), [tf.zeros_like(state.membrane) for state in record.states],
                [tf.zeros(value.shape, tf.float32) for value in given.values])
        loop = body(loop[0], rest, *loop[1:]) if rest else (loop[0] - 1, *loop[1:])
        if count == 1:
            return body(loop[0], chunk, *loop[1:])[2]
        loop = tf.while_loop(lambda i, *_: i >= 0, lambda i, *carried: body(i, chunk, *carried), loop,
                             maximum_iterations=count, parallel_iterations=1)
        return loop[2]

    def _backward_by_events(self, record: Record, given: Given, upstream: tf.Tensor,
                            demands: dict[plans.Call, Demand]) -> list[tf.Tensor]:
        """The same on the event-driven path."""
        assert self.events is not None and record.passed is not None
        of_count = {call: asked.of_count for call, asked in demands.items() if asked.of_count is not None}
        of_spikes = {call: asked.of_spikes for call, asked in demands.items() if asked.of_spikes is not None}
        return self.events.backward(record.passed, given.masks, upstream, of_count, of_spikes, given.values,
                                    given.substituted())

    def _backward_eprop(self, record: Record, given: Given, upstream: tf.Tensor,
                        demands: dict[plans.Call, Demand]) -> list[tf.Tensor]:
        """Chunk by chunk from the first to the last, with traces that run along."""
        given = given._replace(values=self._cast(given.weights, given.values))

        def encode(start: tf.Tensor, steps: int) -> tf.Tensor:
            return self.plan.encoder.layer.stretch(given.inputs, given.key, start, steps)

        def walk(train: tf.Tensor, neurons: Any) -> tf.Tensor:
            with given.substituted():
                return self._walk(train, given.masks, neurons, synapses=self._synapse)

        with given.substituted():  # starts that moved since are read as they were
            membranes = [call.layer.get_initial_state((tf.shape(given.inputs)[0], *_feature_shape(call))).membrane
                         for call in self.plan.spiking]
        return eprop.backward(self.plan, self.chunks(given.inputs.shape[0], given.training), encode, walk, given.values,
                              membranes, upstream / self.timesteps, demands)

    def _gradient(self, train: tf.Tensor, given: Given, neurons: Any, norms: Any, delta: tf.Tensor,
                  demands: dict[plans.Call, Demand], factor: int = 1) -> list[tf.Tensor]:
        """Gradient of the weights for `delta` = dL/dI of the readout, `[steps, B, classes]`, and for what the loss asks
        of spikes (`Demand.upstream`), on recorded activity."""
        trains: list[tf.Tensor] = []
        asked: list[tf.Tensor] = []

        def watched(call: plans.Call, currents: tf.Tensor) -> tf.Tensor:
            spikes = neurons(call, currents)
            if call in demands:
                trains.append(spikes)
                asked.append(demands[call].upstream(spikes, factor))
            return spikes

        train = tf.cast(train, self.plan.encoder.layer.compute_dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(given.values)
            with given.substituted():
                current = self._walk(train, given.masks, watched, norms if given.training else None, self._synapse)
        return tape.gradient([current, *trains], given.values, output_gradients=[tf.cast(delta, current.dtype), *asked],
                             unconnected_gradients=tf.UnconnectedGradients.ZERO)

    # ---- helpers -----------------------------------------------------------------------------------------------

    def _walk(self, train: tf.Tensor, masks: dict[plans.Call, tf.Tensor], neurons: Any, norms: Any = None,
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
                return call.layer(args[0], window_mask=masks.get(call))
            return synapses(call, args, kwargs)

        return self.plan.run_window(train, handler)[self.plan.readout.source]

    def _synapse(self, call: plans.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer of the backward pass, whose convolutions may get their gradient in a faster way."""
        over = call.layer
        if self.kernel == "xla" and isinstance(over, OverTime) and convolution.is_faster(over.layer, args[0].shape,
                                                                                    over.compute_dtype):
            kernel = tf.cast(over.layer.kernel.value, over.compute_dtype)
            return over.at_all_steps(args[0], lambda images: convolution.convolve(images, kernel, over.layer.strides[0],
                                                                          over.layer.padding))
        return plans.plain(call, args, kwargs)

    def _demands(self, asked: Outputs, penalised: list[plans.Call], counted: bool) -> dict[plans.Call, Demand]:
        """What the gradients of `run`'s further outputs ask of the spikes."""
        batch = _records(asked.output)
        of_spikes = {call: g / batch for call, g in zip(penalised, asked.fired)}
        of_count = {call: g.count for call, g in zip(self.plan.spiking, asked.states)} if counted else {}
        return {call: Demand(of_count.get(call), of_spikes.get(call)) for call in {**of_count, **of_spikes}}

    def _slopes(self, record: Record) -> dict[plans.Call, tf.Tensor]:
        return {call: call.layer.neuron.slope_rule.slope(state.count, state.trace, self.timesteps)
                for call, state in zip(self.plan.spiking, record.states)}

    def _split(self, weights: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """`(variables of the window that are trained, the others)`: a custom gradient must read no variable itself."""
        wanted = {id(weight) for weight in weights}
        return [v for v in self._held if id(v) in wanted], [v for v in self._held if id(v) not in wanted]

    def _cast(self, variables: Sequence[Any], values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Values of variables, those of synapses in their layer's compute dtype."""
        dtypes = {id(variable): call.layer.compute_dtype for call in self.plan.window
                  for variable in call.layer.variables if isinstance(call.layer, OverTime)}
        return [tf.cast(value, dtypes.get(id(variable), variable.dtype)) if value.dtype.is_floating else value
                for variable, value in zip(variables, values)]

    def _draw_masks(self, batch: tf.Tensor) -> dict[plans.Call, tf.Tensor]:
        return {call: call.layer.draw_mask((batch, *_feature_shape(call)))
                for call in self.plan.dropouts if call.layer.rate > 0.0}

    def chunks(self, batch: int | None, training: bool = False) -> tuple[int, int]:
        """`(steps per chunk, steps in the last, shorter chunk)` for a batch of this size."""
        if training and self.plan.norms:
            return self.timesteps, 0
        if self.chunk is not None:
            chunk = min(self.chunk, self.timesteps, kernels.MOST_STEPS)
        else:
            neurons = [(batch or 32) * math.prod(_feature_shape(call)) for call in self.plan.spiking]
            chunk = kernels.choose_chunk(self.timesteps, max(neurons), sum(neurons))
        return chunk, self.timesteps % chunk


def _records(values: tf.Tensor) -> tf.Tensor:
    """B of `[B, ...]`, float32; at least 1, as the last batch of an epoch may leave a replica without a record."""
    return tf.maximum(tf.cast(tf.shape(values)[0], tf.float32), 1.0)


def _feature_shape(call: plans.Call) -> tuple[int, ...]:
    """Shape of one sample at one step of what a layer of the window takes, without T and B."""
    return tuple(call.args[0].shape[2:])


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
