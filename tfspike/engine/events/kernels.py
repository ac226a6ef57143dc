"""The compiled loops of the event-driven path: one image through a whole window, forward and back.

Both walk the tables of a `program.Program`, in stretches of `columns.STEPS` steps and operation after operation, so
that spike lists and membranes of a stretch stay in a cache. A spike list is packed: the entries of pixel p = (y, x) at
step s of the stretch are `entries[starts[i]:starts[i + 1]]`, i = s pixels + p: x channels + c, where in its line each
spike is, in rising order.

numba compiles each function once for a machine and keeps the code beside this file, or in the user's cache where that
cannot be written (NUMBA_CACHE_DIR). It looks at this file alone: delete the code after changes in `rows` or `columns`.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from tfspike.engine.events import columns as col
from tfspike.engine.events import rows as vectors

compiled = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)
# What is called for every pixel: a call would pass seven numbers for every array
inlined = numba.njit(nogil=True, error_model="numpy", boundscheck=False, forceinline=True)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@compiled
def encode(row: Any, lists: Any, layout: int, train: Any, packed: Any, image: int, batch: int, first: int,
           steps: int, starts: Any, entries: Any, values: Any) -> None:
    """Lists what the encoder gives at steps first..first+steps-1."""
    listed = lists[row[col.OUT]]
    pixels, channels = listed[col.LIST_HEIGHT] * listed[col.LIST_WIDTH], listed[col.LIST_CHANNELS]
    size, at, end = pixels * channels, listed[col.STARTS], listed[col.ENTRIES]
    starts[at] = end
    for s in range(steps):
        t = first + s
        plane = (2 * (t // 8) * batch + image) * size
        bit = np.uint8(t % 8)
        place = image * size
        if layout == col.STEPWISE:
            place = (t * batch + image) * size
        for p in range(pixels):
            for c in range(channels):
                i = p * channels + c
                if layout == col.TERNARY:
                    value = np.float32((packed[plane + i] >> bit) & 1) - np.float32(
                        (packed[plane + batch * size + i] >> bit) & 1)
                else:
                    value = train[place + i]
                if value != _ZERO:
                    entries[end], values[end] = p % listed[col.LIST_WIDTH] * channels + c, value
                    end += 1
            at += 1
            starts[at] = end


@compiled
def mask(row: Any, lists: Any, masks: Any, steps: int, starts: Any, entries: Any, values: Any) -> None:
    """Lists the spikes of another list that dropout leaves."""
    source, listed = lists[row[col.SOURCE]], lists[row[col.OUT]]
    width, pixels = listed[col.LIST_WIDTH], listed[col.LIST_HEIGHT] * listed[col.LIST_WIDTH]
    end = listed[col.ENTRIES]
    starts[listed[col.STARTS]] = end
    for i in range(steps * pixels):
        kept = row[col.PLACE] + i % pixels // width * width * listed[col.LIST_CHANNELS]
        for k in range(starts[source[col.STARTS] + i], starts[source[col.STARTS] + i + 1]):
            if masks[kept + entries[k]]:
                entries[end], values[end] = entries[k], values[k]
                end += 1
        starts[listed[col.STARTS] + i + 1] = end


@inlined
def rows_under(row: Any, listed: Any, step: int, y: int, x: int, starts: Any, entries: Any, values: Any, rows: Any,
               factors: Any) -> int:
    """Collects the weight rows of the spikes under the window of output pixel (y, x), and the bias; how many."""
    columns, channels, pool, pick = row[col.PADDED], row[col.CHANNELS], row[col.POOL], row[col.PICK]
    rows[0], factors[0] = row[col.KH] * row[col.KW] * channels * columns, _ONE
    n = 1
    top, left = y * row[col.SY] - row[col.PY], x * row[col.SX] - row[col.PX]
    width = listed[col.LIST_WIDTH]
    begin_x, end_x = max(0, -left), min(row[col.KW], row[col.WIDTH] - left)
    if end_x <= begin_x:  # padding alone
        return n
    for ky in range(max(0, -top), min(row[col.KH], row[col.HEIGHT] - top)):
        for a in range(pool):
            line = listed[col.STARTS] + (step * listed[col.LIST_HEIGHT] + (top + ky) * pick + a) * width
            if pick == 1:  # one stretch of the list: entries say where in a line they are
                base = (ky * row[col.KW] - left) * channels
                n = rows_of(line + left + begin_x, line + left + end_x, base, columns, listed, starts, entries, values,
                            n, rows, factors)
                continue
            for kx in range(begin_x, end_x):
                for b in range(pool):
                    pixel = (left + kx) * pick + b
                    base = (ky * row[col.KW] + kx - pixel) * channels
                    n = rows_of(line + pixel, line + pixel + 1, base, columns, listed, starts, entries, values, n, rows,
                                factors)
    return n


@inlined
def rows_of(first: int, behind: int, base: int, columns: int, listed: Any, starts: Any, entries: Any, values: Any,
            n: int, rows: Any, factors: Any) -> int:
    """Adds the rows of the spikes of some neighbouring pixels to n others; how many there are then."""
    begin, end = starts[first], starts[behind]
    vectors.place(rows, n, entries, begin, end, base, columns)
    if listed[col.VALUED]:
        for k in range(begin, end):
            factors[n + k - begin] = values[k]
    return n + end - begin


@inlined
def add_rows(floats: Any, at: int, columns: int, weights: Any, place: int, rows: Any, n: int, valued: bool,
             factors: Any) -> None:
    """Adds weight rows to floats[at:at + columns], as many vectors at once as the registers hold."""
    c = 0
    if valued:
        while c + 64 <= columns:
            vectors.add_weighted_4(floats, at + c, weights, place + c, rows, n, factors)
            c += 64
        if c + 32 <= columns:
            vectors.add_weighted_2(floats, at + c, weights, place + c, rows, n, factors)
            c += 32
        while c < columns:
            vectors.add_weighted_1(floats, at + c, weights, place + c, rows, n, factors)
            c += 16
        return
    while c + 128 <= columns:
        vectors.add_8(floats, at + c, weights, place + c, rows, n)
        c += 128
    if c + 64 <= columns:
        vectors.add_4(floats, at + c, weights, place + c, rows, n)
        c += 64
    if c + 32 <= columns:
        vectors.add_2(floats, at + c, weights, place + c, rows, n)
        c += 32
    if c < columns:
        vectors.add_1(floats, at + c, weights, place + c, rows, n)


@inlined
def scatter(row: Any, listed: Any, step: int, starts: Any, entries: Any, values: Any, weights: Any,
            floats: Any) -> None:
    """Adds the spikes of one step to the membranes of all neurons in whose windows they are.

    One spike meets neighbouring pixels of a line with neighbouring taps, the last one first, and its weights lie in
    this order: `[window height, channels, window width, padded channels]`.
    """
    columns, channels, wide = row[col.PADDED], row[col.CHANNELS], row[col.KW]
    for y in range(row[col.HEIGHT]):
        line = listed[col.STARTS] + (step * row[col.HEIGHT] + y) * row[col.WIDTH]
        top = y + row[col.PY]
        for k in range(starts[line], starts[line + row[col.WIDTH]]):
            x, value = entries[k] // channels, values[k]
            left = x + row[col.PX] - wide + 1
            begin = max(0, -left)
            n = (min(wide, row[col.OW] - left) - begin) * columns
            if n <= 0:
                continue
            for ky in range(max(0, top - row[col.OH] + 1), min(row[col.KH], top + 1)):
                at = row[col.PLACE] + ((top - ky) * row[col.OW] + left + begin) * columns
                tap = (ky * channels + entries[k] - x * channels) * wide + begin
                vectors.add_scaled(floats, at, weights, row[col.WEIGHTS] + tap * columns, n, value)


@inlined
def add_spikes(row: Any, scale: Any, listed: Any, step: int, y: int, x: int, starts: Any, entries: Any, values: Any,
               floats: Any, at: int) -> None:
    """Adds the spikes of output pixel (y, x), every channel by itself, without weights."""
    for a in range(row[col.POOL]):
        line = step * listed[col.LIST_HEIGHT] + y * row[col.PICK] + a
        for pixel in range(x * row[col.PICK], x * row[col.PICK] + row[col.POOL]):
            first = listed[col.STARTS] + line * listed[col.LIST_WIDTH] + pixel
            to = at - pixel * row[col.CHANNELS]
            for k in range(starts[first], starts[first + 1]):
                floats[to + entries[k]] += scale * values[k] if listed[col.VALUED] else scale


@compiled
def add_derivatives(rule: int, constants: Any, floats: Any, at: int, trace: Any, place: int, columns: int) -> None:
    """Adds the surrogate derivative h of so many membrane potentials to the traces (`tfspike.surrogates`)."""
    for c in range(columns):
        x = constants[col.GAIN] * (floats[at + c] - constants[col.THRESHOLD]) / constants[col.STRETCH]
        if rule == col.RECTANGULAR:
            h = _ONE if abs(x) < np.float32(0.5) else _ZERO
        elif rule == col.TRIANGULAR:
            h = max(_ONE - abs(x), _ZERO)
        elif rule == col.ARCTAN:
            h = _ONE / (_ONE + (np.float32(math.pi) * x) ** 2)
        else:
            s = _ONE / (_ONE + np.exp(np.float32(-4.0) * x))
            h = np.float32(4.0) * s * (_ONE - s)
        trace[place + c] += h


@compiled
def synapse(row: Any, constants: Any, lists: Any, decay: Any, first: int, steps: int, weights: Any, floats: Any,
            starts: Any, entries: Any, values: Any, rows: Any, factors: Any, count: Any, trace: Any, traced: bool,
            spikes: Any, recorded: bool) -> None:
    """Currents of a stretch, and what becomes of them: spikes, a kept current, or the readout's membrane."""
    columns, pixels, target = row[col.PADDED], row[col.OH] * row[col.OW], row[col.TARGET]
    listed = lists[max(row[col.SOURCE], 0)]
    valued, scale = listed[col.VALUED] == 1, constants[col.SCALE]
    words, bias = columns // col.LANES, row[col.KH] * row[col.KW] * row[col.CHANNELS] * columns
    at_start, end = 0, 0
    if target == col.FIRE:
        out = lists[row[col.OUT]]
        at_start, end = out[col.STARTS], out[col.ENTRIES]
        starts[at_start] = end
    for s in range(steps):
        given = 0 if listed[col.CONSTANT_LIST] else s  # what is the same at every step is listed once
        if row[col.SCATTERED] == 1:
            scatter(row, listed, s, starts, entries, values, weights, floats)
        for y in range(row[col.OH]):
            for x in range(row[col.OW]):
                p = y * row[col.OW] + x
                at = row[col.PLACE] + p * columns
                if target == col.STORE:
                    at += s * pixels * columns
                    floats[at:at + columns] = _ZERO
                if row[col.BASE] >= 0:
                    kept = s * row[col.BASE_STEPS] * row[col.BASE_PIXELS]
                    kept += (y * row[col.BASE_WIDTH] + x) * row[col.BASE_PICK]
                    rows[0] = row[col.BASE] + kept * columns
                    add_rows(floats, at, columns, floats, 0, rows, 1, False, factors)
                if row[col.SCATTERED] == 1:
                    vectors.add_scaled(floats, at, weights, row[col.WEIGHTS] + bias, columns, _ONE)
                elif row[col.SOURCE] >= 0:
                    if row[col.WEIGHTED]:
                        n = rows_under(row, listed, given, y, x, starts, entries, values, rows, factors)
                        add_rows(floats, at, columns, weights, row[col.WEIGHTS], rows, n, valued, factors)
                    else:
                        add_spikes(row, scale, listed, given, y, x, starts, entries, values, floats, at)
                if target == col.READ:
                    for c in range(columns):
                        floats[at + c] *= constants[col.LEAKS]
                elif target == col.FIRE:
                    if traced and row[col.RULE] != col.LEAK:
                        add_derivatives(row[col.RULE], constants, floats, at, trace, at, columns)
                    for w in range(words):
                        fired = vectors.fire(floats, at + w * col.LANES, constants[col.THRESHOLD], constants[col.LEAKS])
                        if recorded:
                            spikes[first + s, row[col.WORDS] + p * words + w] = np.uint16(fired)
                        if fired:
                            vectors.tally(count, at + w * col.LANES, fired, _ONE)
                            if row[col.RULE] == col.LEAK:
                                vectors.tally(trace, at + w * col.LANES, fired, decay[first + s])
                        while fired:
                            c = w * col.LANES + vectors.lowest(fired)
                            fired &= fired - 1
                            entries[end] = x * row[col.COUT] + c
                            end += 1
                    starts[at_start + s * pixels + p + 1] = end


@compiled
def forward(ops: Any, numbers: Any, lists: Any, decays: Any, layout: int, image: int, batch: int, timesteps: int,
            train: Any, packed: Any, masks: Any, weights: Any, floats: Any, starts: Any, entries: Any, values: Any,
            rows: Any, factors: Any, count: Any, trace: Any, traced: bool, spikes: Any, recorded: bool) -> None:
    """One image through the window.

    Args:
      ops, numbers, lists: `Program.tables`.
      decays: leak^(T - 1 - t), `[operations, T]`.
      layout, train, packed: the encoded input (`program.inputs_of`), of the whole batch: float32, or if it is ternary
        uint8 bits of 8 steps, `[ceil(T / 8), 2, B, features]`, those of 1 and those of -1.
      image, batch, timesteps: which one, of how many; T.
      masks: of dropout, of this image.
      weights: of all synapses, `[rows + 1, padded channels]` each, float32, or uint16 which holds bfloat16; the last
        row is the bias. Of one that is scattered, in another order (`scatter`).
      floats: membranes, and room for kept currents; all 0.
      starts, entries, values: room for spike lists.
      rows, factors: room for the rows of one pixel.
      count, trace: of this image; all 0.
      traced: the traces of surrogates are wanted.
      spikes: `[T, words]`, where `recorded`.
    """
    for first in range(0, timesteps, col.STEPS):
        steps = min(col.STEPS, timesteps - first)
        for i in range(len(ops)):
            row = ops[i]
            if row[col.ONCE] == 1 and first > 0:
                continue
            some = 1 if row[col.ONCE] == 1 else steps
            if row[col.KIND] == col.ENCODE:
                encode(row, lists, layout, train, packed, image, batch, first, some, starts, entries, values)
            elif row[col.KIND] == col.MASK:
                mask(row, lists, masks, some, starts, entries, values)
            else:
                synapse(row, numbers[i], lists, decays[i], first, some, weights, floats, starts, entries, values, rows,
                        factors, count, trace, traced, spikes, recorded)
