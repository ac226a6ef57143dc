"""Neurons that take back a spike given too early: the calcium-gated bipolar neuron, for converted networks.

    u_t = v_(t-1) + I_t        s_t = +1 if u_t > theta;  -1 if u_t <= -theta/2 and c_(t-1) > 0;  else 0
    v_t = u_t - theta s_t      c_t = c_(t-1) + s_t

c, the "calcium", counts spikes less those taken back and is never below 0, so that the net count stays that of a ReLU:
where spikes of the layer in front come unevenly, a neuron that fired for the early ones is corrected by the late ones.

Source: this is our reading of Gao et al. 2023 ("High-accuracy deep ANN-to-SNN conversion using quantization-aware
training framework and calcium-gated bipolar leaky integrate and fire neuron", Front. Neurosci. 17) from its title and
abstract: the paper's equations, and the leak of its calcium, were not at hand. Wang et al. 2022 ("Signed neuron with
memory", IJCAI) describe the same idea. No gradient is defined: a converted network is not trained further.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfspike.checks import check_fraction, check_threshold
from tfspike.neurons import gradients
from tfspike.neurons.layers import OpenNeurons, Window


@keras.saving.register_keras_serializable("tfspike")
class BipolarIF(OpenNeurons):
    """Integrate-and-fire neurons with spikes of 1 and -1, without gradient; a model of them is computed layer by layer.

    Args:
      threshold: theta, above 0.
      start: share of the threshold that the membrane begins a window with, in [0, 1).
      gradient: "event" or "rate", that of the network's other layers.

    Raises:
      UserError: a constant out of range.
    """

    def __init__(self, threshold: float = 1.0, start: float = 0.5, gradient: str = "rate", **kwargs: Any):
        super().__init__(gradient, **kwargs)
        self.threshold, self.start = check_threshold(threshold), check_fraction("start", start)

    @property
    def neuron(self) -> gradients.Neuron:
        """The same without spikes of -1."""
        return gradients.Neuron.lif(1.0, self.threshold, reset="subtract", start=self.start)

    def window(self, currents: tf.Tensor) -> Window:
        membrane = gradients.initial_membrane(tf.shape(currents)[1:], self.neuron)
        calcium = tf.zeros_like(membrane)
        spikes, potentials, membranes = [], [], []
        for current in tf.unstack(currents):
            u = membrane + tf.cast(current, tf.float32)
            back = tf.logical_and(u <= -0.5 * self.threshold, calcium > 0.0)
            spike = tf.cast(u > self.threshold, tf.float32) - tf.cast(back, tf.float32)
            membrane, calcium = u - self.threshold * spike, calcium + spike
            spikes.append(tf.cast(spike, self.compute_dtype))
            potentials.append(u)
            membranes.append(membrane)
        return Window(tf.stack(spikes), tuple(potentials), tuple(membranes))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold, "start": self.start}
