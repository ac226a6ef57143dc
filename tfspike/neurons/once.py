"""Temporal coding: neurons that fire once in a window, and a readout for which the first spike counts most.

With u_t, h, g_t and delta_t as in `tfspike.gradients`, and f_t = 1 where the neuron fired before step t:

    s_t = 1[u_t > theta] (1 - f_t)        delta_t = gain h(x_t) (1 - f_t) g_t + lambda (1 - s_t) delta_(t+1)

f_t held constant. A neuron with reset="silent" does both without knowing f_t: its spike leaves a membrane of minus
infinity, from which it never fires, and where every surrogate derivative is 0.

The readout behind output neurons of this kind grows in place of leaking,

    V_t = c (V_(t-1) + s_t)               o = V_T / T = (1/T) sum over t of c^(T-t+1) s_t

so that the class whose neuron fires first has the highest score, and one whose neuron does not fire has 0. Its gradient
dL/ds_t = c^(T-t+1) / T dL/do knows when a spike came. Such a sum of weighted spikes is how networks that answer with
their first spike are trained by backpropagation through time (temporal weighting in ETTFS, Che et al. 2024); the scores
of Mostafa 2018 are the spike times themselves, of neurons with another synapse.
"""

from __future__ import annotations

import numpy as np

_EARLIEST = 10.0  # the score of a spike at the first step: logits of a sure answer


def growth(timesteps: int) -> float:
    """c, for which a spike at the first step has the score 10, whatever the length of the window."""
    return float((_EARLIEST * timesteps) ** (1.0 / timesteps))


def weights(timesteps: int, growth: float) -> np.ndarray:
    """dV_T/dI_t for t = 1..T, `[T]` float32: c^(T-t+1), and 1 for a readout that does not grow."""
    return np.float32(growth) ** np.arange(timesteps, 0, -1, dtype=np.float32)
