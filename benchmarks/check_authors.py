"""Checks `torch_kits.Authors` against the NumPy reference of the tests: `python -m benchmarks.check_authors`.

A tiny network with every kind of stage, float64, given input spikes: outputs, spikes and all weight gradients of the
"event" gradient must be equal to rounding. Leaks far from 1, because at .99 the leak's share in the slope hides in 1 %.
Needs PyTorch and NumPy, no TensorFlow.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from benchmarks.torch_kits import Authors
from benchmarks.torch_nets import Net
from tests import oracle
from tfspike.variants import Block, Conv, Pool, Variant

TIMESTEPS, BATCH, SIZE, CHANNELS, CLASSES = 12, 3, 8, 2, 3
FILTERS, LAST_SIZE = 6, 1  # of the last feature map: 8 pixels, halved by the pooling and by each block
VARIANT = Variant((Conv(4), Pool(), Block(FILTERS, (2, 1)), Block(FILTERS, (1, 2))), hidden=8, kappa=9.0)
REFERENCE = (oracle.Conv(), oracle.Pool(), oracle.Block(2, 1, "conv"), oracle.Block(1, 2, "identity"), oracle.Hidden())
TOLERANCE = 1e-12


def largest_difference(leak: float, threshold: float, seed: int = 0, compiled: bool = False) -> float:
    """Largest relative difference of output and weight gradients between PyTorch and the reference.

    Raises:
      AssertionError: the network is too quiet to show anything, or a spike differs.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    spikes = random.choice([-1.0, 0.0, 1.0], (TIMESTEPS, BATCH, SIZE, SIZE, CHANNELS))
    upstream = random.normal(size=(BATCH, CLASSES))
    kit = Authors(leak, threshold, compiled)
    net = Net(VARIANT, CHANNELS, SIZE, CLASSES, kit).double()
    net.watched = [[] for _ in net.neurons]
    kit.reset()
    for step in torch.from_numpy(spikes).permute(0, 1, 4, 2, 3):
        membrane = net(step)
    kit.finish(TIMESTEPS)
    out = membrane / TIMESTEPS
    out.backward(torch.from_numpy(upstream))

    weights = [_to_reference(synapse.weight.detach()) for synapse in net.synapses]
    reference = oracle.Net(REFERENCE, leak, threshold)
    record = oracle.forward(reference, weights, spikes)
    assert all(layer.spikes.any() for layer in record.layers), f"a layer is silent: {record.firing_counts()}"
    for layer, seen in zip(record.layers, net.watched, strict=True):
        np.testing.assert_allclose([step.item() for step in seen], [train.mean() for train in layer.spikes], atol=1e-6)
    expected = oracle.backward(reference, weights, record, upstream, "event")
    found = [_to_reference(synapse.weight.grad) for synapse in net.synapses]
    pairs = [(out.detach().numpy(), record.output), *zip(found, expected, strict=True)]
    assert all(np.abs(right).max() > 0 for _, right in pairs), "a gradient is zero, so nothing is shown"
    return max(float(np.abs(left - right).max() / np.abs(right).max()) for left, right in pairs)


def _to_reference(weight: torch.Tensor) -> np.ndarray:
    """[out, in, k, k] to [k, k, in, out]; [out, in] to [in, out], the hidden layer's input from C, H, W to H, W, C."""
    array = weight.numpy()
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.shape[0] == VARIANT.hidden:
        array = array.reshape(len(array), FILTERS, LAST_SIZE, LAST_SIZE).transpose(0, 2, 3, 1).reshape(len(array), -1)
    return array.T


def main() -> int:
    """The command; returns its exit code."""
    worst = 0.0
    for leak, threshold, compiled in ((0.99, 1.0, False), (0.9, 0.8, False), (0.5, 0.6, False), (0.5, 0.6, True)):
        difference = largest_difference(leak, threshold, compiled=compiled)
        worst = max(worst, difference)
        print(f"leak {leak}, threshold {threshold}{', compiled' * compiled}: largest relative difference "
              f"{difference:.1e}")
    if worst > TOLERANCE:
        print(f"The algorithm in PyTorch differs from the reference by more than {TOLERANCE}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
