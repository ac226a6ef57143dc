"""The compiled loops of the gradient "event": one image through its window, from the last step to the first.

With the leak-aware slope delta_t = dL/dI_t is constant between the output spikes of a neuron, so that D_t = delta_t -
delta_(t+1) is 0 unless it fired at t. Everything follows from these jumps, exactly:

    dL/ds_t of the layer below  =  G_t,   G_t = G_(t+1) + W^T D_t         read where that layer fired, and forgotten
    dL/dW  =  sum over t of delta_t s_t  =  sum over t of D_t S_t         S_t = spikes of the layer below up to t

so that an output spike costs a row of G and a row of dL/dW under each tap of its window, and nothing else costs
anything. The jumps of a stretch lie beside the entries of its spike lists (`kernels`): first dL/ds, then D in place
of it. The readout's delta is the same at every step: one jump at the last step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfspike.engine.events import columns as col
from tfspike.engine.events import kernels
from tfspike.engine.events import rows as vectors
from tfspike.engine.events.kernels import compiled

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@compiled
def list_recorded(row: Any, out: Any, first: int, steps: int, spikes: Any, starts: Any, entries: Any) -> None:
    """Lists recorded spikes again."""
    pixels, words, end = row[col.OH] * row[col.OW], row[col.PADDED] // col.LANES, out[col.ENTRIES]
    starts[out[col.STARTS]] = end
    for s in range(steps):
        for p in range(pixels):
            place = p % row[col.OW] * row[col.COUT]
            for w in range(words):
                fired = np.int64(spikes[first + s, row[col.WORDS] + p * words + w])
                while fired:
                    entries[end] = place + w * col.LANES + vectors.lowest(fired)
                    fired &= fired - 1
                    end += 1
            starts[out[col.STARTS] + s * pixels + p + 1] = end


@compiled
def ask(row: Any, out: Any, steps: int, starts: Any, entries: Any, values: Any, of_count: Any, of_spikes: Any) -> None:
    """Begins dL/ds of every listed spike with what the loss asks of it directly (`records.Demand`)."""
    width, pixels, begin = row[col.OW], row[col.OH] * row[col.OW], out[col.STARTS]
    for i in range(steps * pixels):
        place = row[col.PLACE] + i % pixels * row[col.PADDED] - i % width * row[col.COUT]
        for k in range(starts[begin + i], starts[begin + i + 1]):
            values[k] = of_spikes
            if len(of_count):
                values[k] += of_count[place + entries[k]]


@compiled
def credit(row: Any, out: Any, steps: int, starts: Any, entries: Any, values: Any, slope: Any, delta: Any) -> None:
    """dL/ds of a stretch's spikes to the jumps of delta that they make: delta_t = slope dL/ds_t where it fired."""
    width, pixels, begin = row[col.OW], row[col.OH] * row[col.OW], out[col.STARTS]
    for i in range(steps * pixels - 1, -1, -1):
        place = row[col.PLACE] + i % pixels * row[col.PADDED] - i % width * row[col.COUT]
        for k in range(starts[begin + i], starts[begin + i + 1]):
            n = place + entries[k]
            after = slope[n] * values[k]
            values[k] = after - delta[n]
            delta[n] = after


@compiled
def merge(row: Any, ops: Any, links: Any, number: int, lists: Any, steps: int, starts: Any, entries: Any,
          values: Any) -> None:
    """Jumps of a kept current: those of all currents that it is added to."""
    out, channels = lists[row[col.JUMPS]], row[col.COUT]
    at, end = out[col.STARTS], out[col.ENTRIES]
    starts[at] = end
    for s in range(steps):
        for y in range(row[col.OH]):
            for x in range(row[col.OW]):
                for link in range(len(links)):
                    if links[link, 0] != number:
                        continue
                    reader = ops[links[link, 1]]
                    pick, source = reader[col.BASE_PICK], lists[reader[col.JUMPS]]
                    if y % pick or x % pick or y // pick >= reader[col.OH] or x // pick >= reader[col.OW]:
                        continue
                    p = source[col.STARTS] + (s * reader[col.OH] + y // pick) * reader[col.OW] + x // pick
                    for k in range(starts[p], starts[p + 1]):
                        entries[end] = entries[k] + (x - x // pick) * channels
                        values[end] = values[k]
                        end += 1
                at += 1
                starts[at] = end


@compiled
def read_out(row: Any, out: Any, last: bool, steps: int, upstream: Any, starts: Any, entries: Any,
             values: Any) -> None:
    """The jump of the readout, at the last step of the window."""
    pixels, end = row[col.OH] * row[col.OW], out[col.ENTRIES]
    starts[out[col.STARTS]] = end
    for i in range(steps * pixels):
        if last and i >= (steps - 1) * pixels:
            p = i % pixels
            for c in range(row[col.COUT]):
                entries[end] = p % row[col.OW] * row[col.COUT] + c
                values[end] = upstream[p * row[col.COUT] + c]
                end += 1
        starts[out[col.STARTS] + i + 1] = end


@compiled
def unmask(source: Any, masked: Any, steps: int, starts: Any, entries: Any, values: Any) -> None:
    """Adds dL/ds of the spikes that dropout left to those in front of it."""
    for i in range(steps * source[col.LIST_HEIGHT] * source[col.LIST_WIDTH]):
        n, end = starts[masked[col.STARTS] + i], starts[masked[col.STARTS] + i + 1]
        for k in range(starts[source[col.STARTS] + i], starts[source[col.STARTS] + i + 1]):
            if n < end and entries[n] == entries[k]:
                values[k] += values[n]
                n += 1


@compiled
def meet(row: Any, listed: Any, step: int, sign: Any, reads: bool, starts: Any, entries: Any, values: Any, given: Any,
         seen: Any) -> None:
    """Goes through the spikes that a synapse reads at one step: adds them to S with a sign, or reads G for dL/ds."""
    channels, pick = row[col.CHANNELS], row[col.PICK]
    line = row[col.WIDTH] * channels
    for y in range(listed[col.LIST_HEIGHT]):
        if y // pick >= row[col.HEIGHT] or y % pick >= row[col.POOL]:
            continue
        for x in range(listed[col.LIST_WIDTH]):
            if x // pick >= row[col.WIDTH] or x % pick >= row[col.POOL]:
                continue
            place = row[col.GRADIENT] + y // pick * line + (x // pick - x) * channels
            p = listed[col.STARTS] + (step * listed[col.LIST_HEIGHT] + y) * listed[col.LIST_WIDTH] + x
            for k in range(starts[p], starts[p + 1]):
                n = place + entries[k]
                if row[col.WEIGHTED]:
                    seen[n] += sign * values[k] if listed[col.VALUED] else sign
                if reads:
                    values[k] += given[n]


@kernels.inlined
def add_scaled(to: Any, at: int, these: Any, begin: int, n: int, factor: Any) -> None:
    """to[at + i] += factor these[begin + i] for i < n."""
    whole = n // col.LANES * col.LANES
    vectors.add_scaled(to, at, these, begin, whole, factor)
    for i in range(whole, n):
        to[at + i] += factor * these[begin + i]


@compiled
def through(row: Any, scale: Any, jumps: Any, listed: Any, first: int, steps: int, starts: Any, entries: Any,
            values: Any, transposed: Any, given: Any, seen: Any, of_weights: Any) -> None:
    """Jumps of a synapse's currents in a stretch: into the spikes that it reads (G) and into its weights.

    Args:
      row, scale: the synapse, and what a spike counts where it has no weights.
      jumps, listed: the lists of the jumps, and of the spikes that it reads.
      first, steps: of the window.
      starts, entries, values: of all lists; dL/ds is added to the listed spikes, but for those of the encoder.
      transposed: weights, `[channels, rows + 1]`, the last row being the bias.
      given, seen: G and S of the maps that synapses see, one after the other.
      of_weights: dL/dW, as `transposed`; added to.
    """
    pixels, channels = row[col.OH] * row[col.OW], row[col.CHANNELS]
    line, size = row[col.WIDTH] * channels, row[col.KH] * row[col.KW] * channels
    inner = listed[col.VALUED] == 0
    for s in range(steps - 1, -1, -1):
        until = np.float32(first + s + 1)
        for p in range(pixels):
            at = jumps[col.STARTS] + s * pixels + p
            y, x = p // row[col.OW], p % row[col.OW]
            top, left = y * row[col.SY] - row[col.PY], x * row[col.SX] - row[col.PX]
            begin, end = max(0, -left), min(row[col.KW], row[col.WIDTH] - left)
            n = (end - begin) * channels
            for k in range(starts[at], starts[at + 1]):
                jump, channel = values[k], entries[k] - x * row[col.COUT]
                if jump == _ZERO:
                    continue
                if not row[col.WEIGHTED]:
                    given[row[col.GRADIENT] + y * line + x * channels + channel] += scale * jump
                    continue
                weights = row[col.TRANSPOSED] + channel * (size + 1)
                of_weights[weights + size] += jump * until
                if n <= 0:
                    continue
                by = jump * until if listed[col.CONSTANT_LIST] else jump  # S_t = t s where s is the same at every step
                for ky in range(max(0, -top), min(row[col.KH], row[col.HEIGHT] - top)):
                    tap = weights + (ky * row[col.KW] + begin) * channels
                    pixel = row[col.GRADIENT] + (top + ky) * line + (left + begin) * channels
                    if inner:
                        add_scaled(given, pixel, transposed, tap, n, jump)
                    add_scaled(of_weights, tap, seen, pixel, n, by)
        if not listed[col.CONSTANT_LIST] and (inner or row[col.WEIGHTED]):
            meet(row, listed, s, -_ONE, inner, starts, entries, values, given, seen)


@compiled
def list_all(ops: Any, lists: Any, layout: int, image: int, batch: int, train: Any, packed: Any, masks: Any,
             spikes: Any, first: int, steps: int, again: bool, starts: Any, entries: Any, values: Any) -> None:
    """Lists the spikes of a stretch, those that are the same at every step unless `again`."""
    for i in range(len(ops)):
        row = ops[i]
        if row[col.KIND] == col.ENCODE:
            if not (again and row[col.ONCE] == 1):
                kernels.encode(row, lists, layout, train, packed, image, batch, first,
                               1 if row[col.ONCE] == 1 else steps, starts, entries, values)
        elif row[col.KIND] == col.MASK:
            kernels.mask(row, lists, masks, steps, starts, entries, values)
        elif row[col.TARGET] == col.FIRE:
            list_recorded(row, lists[row[col.OUT]], first, steps, spikes, starts, entries)


@compiled
def backward(ops: Any, numbers: Any, lists: Any, links: Any, layout: int, image: int, batch: int, timesteps: int,
             train: Any, packed: Any, masks: Any, spikes: Any, transposed: Any, slope: Any, upstream: Any,
             of_count: Any, of_spikes: Any, starts: Any, entries: Any, values: Any, delta: Any, given: Any, seen: Any,
             of_weights: Any) -> None:
    """The gradient of the weights of one image, added to `of_weights`.

    Args:
      ops, numbers, lists, layout, image, batch, timesteps, train, packed, masks, starts, entries, values: as of
        `kernels.forward`.
      links: `(kept current, operation that it is added in)`, numbers of operations.
      spikes: recorded, `[T, words]`.
      transposed: weights of all synapses, see `through`.
      slope: of all neurons.
      upstream: dL/dI_t of the readout, the same at every step.
      of_count, of_spikes: what the loss asks of spikes directly: of each neuron, or nothing; of the spikes of each
        operation.
      delta, given, seen: room, all 0.
      of_weights: dL/dW, as `transposed`.
    """
    for first in range(0, timesteps, col.STEPS):
        steps = min(col.STEPS, timesteps - first)
        list_all(ops, lists, layout, image, batch, train, packed, masks, spikes, first, steps, first > 0, starts,
                 entries, values)
        for i in range(len(ops)):
            row = ops[i]
            if row[col.KIND] == col.SYNAPSE and row[col.SOURCE] >= 0 and row[col.WEIGHTED] == 1:
                listed = lists[row[col.SOURCE]]
                for s in range(steps):
                    if not listed[col.CONSTANT_LIST] or first + s == 0:
                        meet(row, listed, s, _ONE, False, starts, entries, values, given, seen)
    for first in range((timesteps - 1) // col.STEPS * col.STEPS, -1, -col.STEPS):
        steps = min(col.STEPS, timesteps - first)
        list_all(ops, lists, layout, image, batch, train, packed, masks, spikes, first, steps, True, starts, entries,
                 values)
        for i in range(len(ops)):
            row = ops[i]
            if row[col.KIND] == col.MASK and lists[row[col.OUT], col.VALUED] == 0:
                out = lists[row[col.OUT]]
                behind = out[col.STARTS] + steps * out[col.LIST_HEIGHT] * out[col.LIST_WIDTH]
                values[starts[out[col.STARTS]]:starts[behind]] = _ZERO
            elif row[col.TARGET] == col.FIRE:
                ask(row, lists[row[col.OUT]], steps, starts, entries, values, of_count, of_spikes[i])
        for i in range(len(ops) - 1, -1, -1):
            row = ops[i]
            if row[col.KIND] == col.MASK:
                if lists[row[col.OUT], col.VALUED] == 0:
                    unmask(lists[row[col.SOURCE]], lists[row[col.OUT]], steps, starts, entries, values)
                continue
            if row[col.KIND] == col.ENCODE:
                continue
            jumps = lists[row[col.JUMPS]]
            if row[col.TARGET] == col.FIRE:
                credit(row, jumps, steps, starts, entries, values, slope, delta)
            elif row[col.TARGET] == col.STORE:
                merge(row, ops, links, i, lists, steps, starts, entries, values)
            else:
                read_out(row, jumps, first + steps == timesteps, steps, upstream, starts, entries, values)
            if row[col.SOURCE] >= 0:
                through(row, numbers[i, col.SCALE], jumps, lists[row[col.SOURCE]], first, steps, starts, entries,
                        values, transposed, given, seen, of_weights)
