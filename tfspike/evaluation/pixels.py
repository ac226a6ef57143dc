"""Pictures as arrays of pixels, which TensorBoard takes; `tfspike.evaluation.plots` has figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure


def filter_sheet(filters: np.ndarray) -> np.ndarray:
    """Filters `[height, width, channels, filters]`, a tile each, as `[height, width, 3]` uint8: RGB for three channels,
    else blue (> 0) to red (< 0), as in reports."""
    scale = max(float(np.abs(filters).max()), 1e-12)
    tiles = np.moveaxis(filters, -1, 0) / (2 * scale) + 0.5
    if tiles.shape[-1] != 3:
        tiles = matplotlib.colormaps["RdBu"](tiles.mean(axis=-1))[..., :3]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    tiles = np.pad(tiles, ((0, rows * columns - len(tiles)), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    height, width = tiles.shape[1:3]
    sheet = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    zoom = max(1, 480 // max(sheet.shape[:2]))
    return (255 * sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)).astype(np.uint8)


def raster_picture(trains: Mapping[str, np.ndarray]) -> np.ndarray:
    """Time to the right, a band of neurons per layer, the input on top; `[height, width, 3]` uint8."""
    gap = 4
    bands, middles, top = [], [], 0
    for train in trains.values():
        middles.append(top + train.shape[1] / 2)
        bands += [np.sign(train).T, np.full((gap, train.shape[0]), 2.0)]
        top += train.shape[1] + gap
    # TensorBoard shows pictures 350 pixels wide: half of this, so that letters are still some 9 pixels high there
    figure = Figure(figsize=(5, 0.9 + 0.5 * len(trains)), dpi=140, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    # colours told apart by the colour-blind: negative spikes orange, none white, spikes dark blue, gaps grey
    colours = ListedColormap(["#d55e00", "#ffffff", "#003f5c", "#dddddd"])
    steps = next(iter(trains.values())).shape[0]
    axes.imshow(np.concatenate(bands[:-1]), colours, vmin=-1, vmax=2, aspect="auto", interpolation="nearest",
                extent=(0.5, steps + 0.5, top - gap, 0))
    axes.set_yticks(middles, list(trains), fontsize=9)
    rates = axes.secondary_yaxis("right")
    rates.set_yticks(middles, [f"{abs(train).mean():.3f}" for train in trains.values()], fontsize=9)
    for side in (axes, rates):
        side.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.set_xlabel("time step", fontsize=9)
    axes.set_title("spikes of one image; right: mean rate", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
