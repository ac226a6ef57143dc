"""Neurons of snnTorch and SpikingJelly on given currents: `python torch_neurons_worker.py INPUTS.npz OUTPUTS.npz`.

Needs torch, snntorch and spikingjelly, but neither TensorFlow nor tfspike. Reads `currents` [T, B, N] and `upstream`, dL/ds of the
same shape; writes spikes and dL/dI of each neuron by its name, and the derivatives of surrogates at `x`.
"""

from __future__ import annotations

import sys

import numpy as np
import torch


def main() -> None:
    import snntorch
    from spikingjelly.activation_based import neuron, surrogate

    inputs, outputs = sys.argv[1:]
    with np.load(inputs) as archive:
        currents, upstream, x = (torch.from_numpy(archive[name]) for name in ("currents", "upstream", "x"))
    found = {}

    def keep(name, run):
        into = currents.clone().requires_grad_()
        spikes = run(into)
        found[name] = spikes.detach().numpy()
        found[f"{name}_gradient"] = torch.autograd.grad((spikes * upstream).sum(), into)[0].numpy()

    def leaky(beta, reset):
        def run(into):
            cell = snntorch.Leaky(beta=beta, reset_mechanism=reset)
            membrane, train = torch.zeros_like(into[0]), []
            for current in into:
                spikes, membrane = cell(current, membrane)
                train.append(spikes)
            return torch.stack(train)
        return run

    keep("snntorch_zero", leaky(0.9, "zero"))
    keep("snntorch_subtract", leaky(0.9, "subtract"))
    keep("snntorch_no_leak", leaky(1.0, "zero"))
    common = {"surrogate_function": surrogate.ATan(), "detach_reset": True, "step_mode": "m"}
    keep("spikingjelly_zero", neuron.LIFNode(tau=10.0, decay_input=False, v_reset=0.0, **common))
    keep("spikingjelly_subtract", neuron.LIFNode(tau=10.0, decay_input=False, v_reset=None, **common))
    keep("spikingjelly_no_leak", neuron.IFNode(v_reset=0.0, **common))
    for name, function in {"snntorch_default": snntorch.Leaky(beta=0.9).spike_grad, "spikingjelly_atan": surrogate.ATan(),
                           "spikingjelly_default": neuron.LIFNode().surrogate_function}.items():
        at = x.clone().requires_grad_()
        found[name] = torch.autograd.grad(function(at).sum(), at)[0].numpy()
    np.savez(outputs, **found)


if __name__ == "__main__":
    main()
