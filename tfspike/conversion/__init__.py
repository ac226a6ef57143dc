"""From a trained ReLU network to a spiking one: threshold balancing.

    converted = conversion.convert(ann, training_images, method="data", timesteps=100)
    converted.model                                    # a SpikingModel of integrate-and-fire neurons

    python -m tfspike.conversion --run=FOLDER --method=spike_norm --timesteps=100

**What is kept equal.** A ReLU's activation a becomes a firing rate r, spikes per step, with a = scale * r; each layer
has one scale, the input 1 (the encoder's rate is the pixel). Put into a = relu(sum of W a'), every path from a layer
with scale' to one with scale turns into

    r = relu(sum of (W scale' / scale) r')

so the weights of each path are multiplied by scale'/scale while all thresholds stay 1. The readout never fires: its
scale is 1, and V_T / T approaches the ANN's logits. There is no bias that would need another factor.

**Residual blocks.** Main path and shortcut add up to the current of one neuron, hence share its scale; each has the
factor of where it comes from. A 1x1 convolution takes it into its weights. An identity has none: its spikes get the
constant scale'/scale instead (`keras.layers.Rescaling`, a convolution that is 1x1 and diagonal). One scale for all
layers joined by identities would spare the constant, but "spike_norm" could not balance it: a spike through an identity
of weight 1 is a current of a full threshold already, and the block's own current comes on top of it.

**Pooling neurons.** The 2x2 average of binary spikes comes in quarters, and the sums that exceed .75 strictly are those
of at least 1. The neuron thus fires once per four spikes, whatever order they come in: its rate is the mean of their
rates, its factor is 1, and it keeps the scale of the layer in front. It loses something only where a sum jumps beyond
1, when spikes coincide.

**What is lost.** Every neuron here is reset to 0, so what exceeds the threshold is gone. A constant current I of at
most 1 fires every floor(1/I) + 1 steps: a rate below I by up to I^2 / (1 + I), nothing for small currents and half for
those near the threshold. A larger scale loses less of it and needs more steps. Behind the first layer currents come in
jumps, one spike each, and what a jump carries beyond the threshold is lost too: that part depends on the ratio of
neighbouring scales, not on their size, and adds up with depth. Rates thus come close to the activations in the first
layer and fall short of them in deep ones, however long the window. (Reset by subtraction, which tfspike does not have,
would keep the excess: Rueckauer et al. 2017.) What the methods trade off:

* "data" (Diehl et al. 2015, data-based normalisation): scale = the largest activation of the layer over a batch of
  training images, or a percentile of the positive ones, which ignores outliers (Rueckauer et al. 2017).
* "spike_norm" (Sengupta et al. 2019): layer by layer, the network so far runs on spikes, and the threshold becomes the
  largest current that reaches a neuron at any step. It accounts for the spikes that really come, and for their
  coincidence within a step.

Sources: P. U. Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold
balancing", IJCNN 2015; A. Sengupta et al., "Going deeper in spiking neural networks: VGG and residual architectures",
Front. Neurosci. 13:95 (2019). Diehl et al. also let the largest weight count in the scale; here activations alone do.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Conversion", "build", "convert"]

METHODS = ("data", "spike_norm")


def __getattr__(name: str) -> Any:
    if name in __all__:  # TensorFlow, only now
        return getattr(importlib.import_module("tfspike.conversion.balance"), name)
    raise AttributeError(f"module 'tfspike.conversion' has no attribute {name!r}")
