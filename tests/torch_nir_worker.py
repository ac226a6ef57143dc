"""Simulates a NIR graph with a PyTorch library: `python torch_nir_worker.py LIBRARY GRAPH.nir INPUTS.npz OUTPUTS.npz`.

Needs torch, nir, nirtorch and the library (norse, snntorch or spikingjelly), but neither TensorFlow nor tfspike.
Writes what leaves the graph at every step, `output` [B, T, classes], and `layer_spikes` [B, layers], unordered.
"""

from __future__ import annotations

import sys

import numpy as np


def load(library, path):
    import nir

    if library == "norse":
        import norse.torch

        return norse.torch.from_nir(nir.read(path), ignore_warnings=True, dt=1e-4)
    if library == "snntorch":
        from snntorch.import_nir import import_from_nir

        return import_from_nir(nir.read(path))
    from spikingjelly.activation_based import nir_exchange

    return nir_exchange.import_from_nir(path, dt=1e-4)


def firing_modules(library, module):
    kinds = {"norse": ("LIFBoxCell", "IAFCell"), "snntorch": ("Leaky",), "spikingjelly": ("_NIRStatefulModule",)}
    return {name: m for name, m in module.named_modules() if type(m).__name__ in kinds[library]}


def main():
    import torch

    library, path, inputs, outputs = sys.argv[1:]
    with np.load(inputs) as archive:
        spikes = archive["spikes"]
    train = torch.from_numpy(np.ascontiguousarray(np.transpose(spikes, (1, 0, 4, 2, 3))))  # [T, B, C, H, W]
    module = load(library, path)
    counts = {}

    def count(name):
        def hook(_module, _inputs, out):
            out = out[0] if isinstance(out, tuple) else out
            counts[name] = counts.get(name, 0) + out.detach().flatten(1).sum(1).numpy()
        return hook

    for name, neuron in firing_modules(library, module).items():
        neuron.register_forward_hook(count(name))
    state, steps = None, []
    with torch.no_grad():
        for x in train:
            out, state = module(x, state) if library != "snntorch" or state is not None else module(x)
            steps.append(out.numpy())
    np.savez(outputs, output=np.stack(steps, 1), layer_spikes=np.stack(list(counts.values()), -1), names=list(counts))


if __name__ == "__main__":
    main()
