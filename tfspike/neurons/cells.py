"""One time step: spiking cells on the Keras RNN cell protocol.

`keras.layers.RNN(LIFCell(n), return_sequences=True)` followed by `tfspike.layers.LeakAware` is, step by step,
the second path to the gradient "event"; the whole-window layers of `tfspike.layers` are tested against it.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike.checks import check_leak, check_threshold, is_count
from tfspike.errors import UserError
from tfspike.neurons import gradients

Shape = tuple[int | None, ...]


class _Cell(keras.layers.Layer):
    """State and shapes that the three cells share: one membrane potential `[B, *shape]`, float32."""

    def __init__(self, units: int | tuple[int, ...], **kwargs: Any):
        # keras.layers.RNN rounds states to the cell's compute dtype, and a membrane must stay float32 under any policy
        super().__init__(**{**kwargs, "dtype": "float32"}, autocast=False)
        shape = tuple(units) if isinstance(units, (tuple, list)) else (units,)
        if not shape or not all(map(is_count, shape)):
            raise UserError(f"`units` must be a positive integer or a tuple of them. Received: units={units!r}.")
        shape = tuple(map(int, shape))
        self.units = shape if isinstance(units, (tuple, list)) else shape[0]
        self.state_size = self.units
        self._shape = shape

    @property
    def output_size(self) -> int:
        """Neurons, as `keras.layers.RNN` asks for them.

        Raises:
          UserError: `units` is the shape of a map, which Keras' RNN layers have no room for.
        """
        if len(self._shape) > 1:
            raise UserError(f"keras.layers.RNN takes cells of one axis, and {type(self).__name__} has {self._shape}: "
                            "use tfspike.LIF, PoolingIF or Readout on the whole window [T, B, ...], call the cell in a "
                            f"loop over time, or flatten the map. Received: units={self.units!r}.")
        return self._shape[0]

    def get_initial_state(self, batch_size: int | tf.Tensor | None = None) -> list[tf.Tensor]:
        """The membrane potential before the first step: zeros, `[batch_size, *shape]` float32."""
        return [tf.zeros((batch_size, *self._shape), tf.float32)]

    def compute_output_shape(self, input_shape: Shape,
                             states_shape: list[Shape] | None = None) -> tuple[Shape, list[Shape]]:
        return input_shape, [input_shape]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class _FiringCell(_Cell):
    """What the two cells that fire share."""

    threshold: float

    @property
    def neuron(self) -> gradients.Neuron:
        """The neuron's constants."""
        raise NotImplementedError

    def call(self, inputs_at_t: tf.Tensor, states: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """`(current [B, ...], [membrane])` to `(spikes [B, ...], [membrane])`."""
        spikes, membrane = gradients.spike_step(tf.cast(inputs_at_t, self.compute_dtype), states[0], self.neuron)
        return spikes, [membrane]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable("tfspike")
class LIFCell(_FiringCell):
    """Leaky integrate-and-fire neurons, one step (Lee et al. 2020, Eqs. 1-4).

        u_t = v_(t-1) + I_t        s_t = 1[u_t > threshold]        v_t = 0 if s_t else leak u_t

    Its gradient is the authors' per-step one (`tfspike.gradients.spike_step`).

    Args:
      units: neurons, an integer or the shape of a feature map.
      leak: leak factor (membrane decay), the share of the membrane potential kept per step, in (0, 1]; 1.0 = no leak.
      threshold: firing threshold, above 0.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, units: int | tuple[int, ...], leak: float = 0.99, threshold: float = 1.0, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.leak = check_leak(leak)
        self.threshold = check_threshold(threshold)

    @property
    def neuron(self) -> gradients.Neuron:
        return gradients.Neuron.lif(self.leak, self.threshold)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leak": self.leak}


@keras.saving.register_keras_serializable("tfspike")
class PoolingIFCell(_FiringCell):
    """The neuron behind an average pooling, one step: no leak, threshold .75, gradient without 1/threshold.

    Args:
      units: neurons, an integer or the shape of a feature map.
      threshold: firing threshold, above 0.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, units: int | tuple[int, ...], threshold: float = 0.75, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.threshold = check_threshold(threshold)

    @property
    def neuron(self) -> gradients.Neuron:
        return gradients.Neuron.pooling(self.threshold)


@keras.saving.register_keras_serializable("tfspike")
class LeakyIntegratorCell(_Cell):
    """Output neurons that never fire, one step: V_t = leak (V_(t-1) + I_t); the leak is ignored in the gradient.

    Args:
      units: neurons.
      leak: leak factor (membrane decay), the share of the membrane potential kept per step, in (0, 1]; 1.0 = no leak.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, units: int | tuple[int, ...], leak: float = 0.99, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.leak = check_leak(leak)

    def call(self, inputs_at_t: tf.Tensor, states: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """`(current [B, ...], [V])` to `(V [B, ...], [V])`, float32."""
        membrane = gradients.readout_window(inputs_at_t[tf.newaxis], states[0], self.leak)[0]
        return membrane, [membrane]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leak": self.leak}
