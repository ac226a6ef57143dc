"""Pictures of a run. Every function returns a matplotlib figure; `png` turns it into bytes.

Figures are narrow (about 440 CSS pixels) with letters of 11 points, so that they stay legible in one column of a
telephone and stand side by side on a screen. Colours are those of Okabe and Ito, or cividis: told apart by the
colour-blind. Nothing here opens a window or touches matplotlib's global state.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, PercentFormatter

from tfspike.evaluation.pixels import filter_sheet as filter_sheet  # their first home was here
from tfspike.evaluation.pixels import raster_picture as raster_picture

if TYPE_CHECKING:
    from tfspike.analysis.energy import EnergyModel
    from tfspike.analysis.measure import Analysis, LayerActivity
    from tfspike.analysis.simulation import Recording

P = ParamSpec("P")

BLUE, ORANGE, GREEN, RED, SKY, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"
INK, PALE = "#24313d", "#d9dfe4"
KINDS = {"input": ORANGE, "lif": BLUE, "pooling": SKY, "readout": GREEN}
WIDTH, DPI = 4.6, 192
_STYLE: Any = {  # matplotlib's own type lists 300 names
    "font.size": 11, "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10,
    "axes.edgecolor": "#8896a3", "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e7ebee",
    "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 2.0, "figure.facecolor": "white"}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, about two pixels per CSS pixel."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _figure(height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **kwargs)


def _styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws under this file's style without leaving a recording in the caller's settings."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return function(*args, **kwargs)

    return wrapper


@_styled
def learning_curves(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and accuracy by epoch; `epochs` as in `metrics.jsonl` (event "epoch")."""
    figure, (loss, accuracy) = _figure(4.6, 2, sharex=True)
    for axes, name, label in ((loss, "loss", "loss"), (accuracy, "accuracy", "accuracy")):
        for part, colour, style, text in (("train", BLUE, "-", "training"), ("val", RED, "--", "validation")):
            points = [(row["epoch"], row[f"epoch/{part}_{name}"]) for row in epochs
                      if row.get(f"epoch/{part}_{name}") is not None]
            if points:
                axes.plot(*zip(*points), style, color=colour, marker="o", markersize=4 if len(points) < 40 else 0,
                          label=text)
        axes.set_ylabel(label)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.set_xlabel("epoch")
    loss.legend()
    return figure


@_styled
def rates_by_epoch(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Firing rate of every layer by epoch, from the first layer (dark) to the last (bright)."""
    names = [name for name in epochs[-1] if name.startswith("epoch_rate/")]
    figure, axes = _figure(4.6)
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.92, len(names)))
    for i, name in enumerate(names):
        points = [(row["epoch"], row[name]) for row in epochs if row.get(name) is not None]
        axes.plot(*zip(*points), color=colours[i], marker="os^Dv"[i % 5], markersize=4, label=name.split("/", 1)[1])
    axes.set(xlabel="epoch", ylabel="spikes per neuron and step", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2 if len(names) < 9 else 3)
    return figure


@_styled
def activity(layers: Sequence[LayerActivity], measure: str) -> Figure:
    """A bar per layer, the input on top; `measure` is "spikes" (per image) or "rate" (per neuron and step)."""
    layers = [layer for layer in layers if layer.kind != "readout"]
    values = [getattr(layer, measure) for layer in layers]
    figure, axes = _figure(1.0 + 0.29 * len(layers))
    axes.barh(range(len(layers)), values, color=[KINDS[layer.kind] for layer in layers], height=0.72)
    axes.set_yticks(range(len(layers)),
                    ["input" if layer.kind == "input" else layer.name for layer in layers])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.2)
    for i, value in enumerate(values):
        axes.annotate(_short(value) if measure == "spikes" else f"{value:.3f}", (value, i), (4, 0),
                      textcoords="offset points", va="center", fontsize=9)
    if measure == "spikes":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("spikes per image" if measure == "spikes" else "spikes per neuron and step")
    return figure


@_styled
def accuracy_over_time(result: Analysis, share: float = 0.99) -> Figure:
    """Accuracy at every step and with early exit, and where `share` of the final accuracy is reached for good."""
    figure, axes = _figure(3.6)
    steps = np.arange(1, result.timesteps + 1)
    axes.plot(steps, result.accuracy_by_step, color=BLUE, label="all images stop at the same step")
    sweep = result.early_exit()
    axes.plot([point.steps for point in sweep], [point.accuracy for point in sweep], ".--", color=RED,
              label="each image stops when clear (mean)")
    reached = result.steps_to(share)
    axes.plot(reached["steps"], reached["accuracy"], "o", color=INK, markersize=7, zorder=5)
    axes.annotate(f"{share:.0%} of the final accuracy\nafter {reached['steps']} of {result.timesteps} steps",
                  (reached["steps"], reached["accuracy"]),
                  (12, -42 if reached["accuracy"] > 0.5 else 24), textcoords="offset points",
                  arrowprops={"arrowstyle": "-", "color": INK, "shrinkB": 4}, fontsize=9,
                  ha="left" if reached["steps"] < 0.6 * result.timesteps else "right")
    axes.set(xlabel="time steps", ylabel="accuracy", ylim=(0, 1.03), xlim=(0, result.timesteps + 0.5))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center")
    return figure


@_styled
def accuracy_over_spikes(result: Analysis) -> Figure:
    """Accuracy against the spikes spent until then, all layers and the input."""
    figure, axes = _figure(3.6)
    axes.plot(result.spikes_by_step, result.accuracy_by_step, color=BLUE, label="all images stop at the same step")
    sweep = result.early_exit()
    axes.plot([point.spikes for point in sweep], [point.accuracy for point in sweep], ".--", color=RED,
              label="each image stops when clear (mean)")
    axes.set(xlabel="spikes per image", ylabel="accuracy", ylim=(0, 1.03), xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center")
    return figure


@_styled
def energy_by_layer(layers: Sequence[LayerActivity], model: EnergyModel) -> Figure:
    """Energy per image of the synapses into every layer, beside the ANN's."""
    layers = [layer for layer in layers if layer.kind != "input"]
    figure, axes = _figure(1.3 + 0.42 * len(layers))
    rows = np.arange(len(layers))
    for offset, colour, label, values in (
            (-0.2, BLUE, "spiking network", [model.picojoules(layer.operations) for layer in layers]),
            (0.2, ORANGE, "ANN of the same shape", [model.picojoules(layer.ann) for layer in layers])):
        joule = [1e-12 * value for value in values]
        axes.barh(rows + offset, joule, height=0.38, color=colour, label=label)
        for row, value in zip(rows, joule):
            axes.annotate(joules(value), (value, row + offset), (4, 0), textcoords="offset points", va="center",
                          fontsize=8)
    axes.set_yticks(rows, [layer.name for layer in layers])
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(EngFormatter("J"))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("energy per image")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@_styled
def speed_over_spikes(spikes: Sequence[float], speeds: Mapping[str, Sequence[float]], energies: Sequence[float],
                      ann_energies: Sequence[float]) -> Figure:
    """Measured images per second of each kernel against spikes per image; below, energy per image (J) of a model."""
    figure, (speed, energy) = _figure(4.6, 2, sharex=True)
    styles = {"dense": (BLUE, "o", "dense"), "events": (GREEN, "s", "event-driven")}
    for kernel, rates in speeds.items():
        colour, marker, label = styles[kernel]
        speed.plot(spikes, rates, color=colour, marker=marker, label=label)
    energy.plot(spikes, energies, color=RED, marker="^", label="spiking network")
    energy.plot(spikes, ann_energies, color=INK, linestyle="--", label="ANN, same shape")
    for axes in (speed, energy):
        axes.set(xlim=(0, None), ylim=(0, 1.1 * axes.dataLim.ymax))
        axes.legend()
    speed.set_ylabel("images per second")
    energy.yaxis.set_major_formatter(EngFormatter("J"))
    energy.xaxis.set_major_formatter(EngFormatter(sep=""))
    energy.set(xlabel="spikes per image", ylabel="energy, model")
    return figure


@_styled
def bars(names: Sequence[str], values: Sequence[float], unit: str, colours: Sequence[str] | None = None) -> Figure:
    """A few totals beside one another: `unit` "J", "%" or a plain word for counts."""
    figure, axes = _figure(0.95 + 0.42 * len(names))
    axes.barh(range(len(names)), values, height=0.62, color=colours or _cycle(len(names)))
    axes.set_yticks(range(len(names)), list(map(_as_text, names)))
    axes.invert_yaxis()
    axes.margins(x=0.24)
    axes.grid(axis="y", visible=False)
    for i, value in enumerate(values):
        text = joules(value) if unit == "J" else f"{100 * value:.2f} %" if unit == "%" else _short(value)
        axes.annotate(text, (value, i), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter("J") if unit == "J" else EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if unit == "%":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlim=(0, 1.24), xticks=(0, 0.25, 0.5, 0.75, 1))
    axes.set_xlabel({"J": "energy per image", "%": "accuracy"}.get(unit, unit))
    return figure


@_styled
def compared_curves(curves: Mapping[str, Sequence[float]],
                    spikes: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """Accuracy at every step of several runs, against the steps, or against the spikes per image until then."""
    figure, axes = _figure(3.3)
    for (name, values), colour, style in zip(curves.items(), _cycle(len(curves)), ["-", "--", "-.", ":"] * len(curves)):
        at = np.arange(1, len(values) + 1) if spikes is None else spikes[name]
        axes.plot(at, values, style, color=colour, label=_as_text(name))
    axes.set(ylabel="accuracy", ylim=(0, 1.03))
    if spikes is None:
        axes.set(xlabel="time steps", xlim=(0, None))
    else:  # a run may cost a hundred times another
        axes.set(xlabel="spikes per image", xscale="log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center")
    return figure


@_styled
def compared_layers(runs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Spikes per image by layer of several runs; a layer that a run has not has no bar."""
    names = list(dict.fromkeys(name for layers in runs.values() for name in layers))
    figure, axes = _figure(1.3 + 0.2 * len(names) * len(runs))
    height = 0.8 / len(runs)
    for j, ((run, layers), colour) in enumerate(zip(runs.items(), _cycle(len(runs)))):
        rows = np.arange(len(names)) + (j - (len(runs) - 1) / 2) * height
        axes.barh(rows, [layers.get(name, 0.0) for name in names], height, color=colour, label=_as_text(run))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("spikes per image")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside lower center")
    return figure


def _cycle(count: int) -> list[str]:
    colours = [BLUE, ORANGE, GREEN, RED, PURPLE, SKY]
    return [colours[i % len(colours)] for i in range(count)]


@_styled
def raster(recording: Recording, image: np.ndarray | None = None, class_names: Sequence[str] | None = None) -> Figure:
    """One image's window: the picture, every layer's spikes with the membrane of one neuron, and the readout.

    Args:
      recording: of `tfspike.analysis.simulation.record`.
      image: the picture, `[H, W, C]` of 0 to 255, or the frames `[T, H, W, 2]` of an event recording; None for none.
      class_names: of the outputs; None for their numbers.
    """
    steps = len(recording.readout)
    heights = [] if image is None else [2.6]
    for layer in recording.layers:
        heights += [1.3, 1.0] if layer.membrane is not None else [1.3]
    figure = Figure(figsize=(WIDTH, 0.55 * sum(heights) + 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights) + 1, 1, height_ratios=[*heights, 3.6])
    place = 0
    if image is not None:
        _show_image(figure.add_subplot(grid[0]), image)
        place = 1
    for layer in recording.layers:
        axes = figure.add_subplot(grid[place])
        shown = layer.spikes.shape[1]
        if shown:
            axes.imshow(layer.spikes.T, ListedColormap([RED, "white", INK]), vmin=-1, vmax=1, aspect="auto",
                        interpolation="nearest", extent=(0.5, steps + 0.5, shown, 0))
        name = layer.name if layer.membrane is not None else "input"
        axes.set_title(f"{name}: {shown} of {layer.active:,} neurons that fired, of {layer.neurons:,}",
                       fontsize=10, loc="left", pad=3)
        _bare(axes, steps)
        place += 1
        if layer.membrane is not None:
            axes = figure.add_subplot(grid[place])
            time = np.arange(1, steps + 1)
            axes.plot(time, layer.membrane, color=BLUE, linewidth=1.2)
            threshold = layer.threshold or 0.0  # the input alone has none
            axes.axhline(threshold, color=RED, linewidth=1, linestyle="--")
            fired = np.flatnonzero(layer.fired)
            axes.plot(fired + 1, layer.membrane[fired], "o", color=RED, markersize=3.5)
            _bare(axes, steps)
            axes.set_yticks([0, threshold], ["0", f"{threshold:g}"], fontsize=9)
            place += 1
    axes = figure.add_subplot(grid[place])
    _readout(axes, recording.readout, class_names or [str(i) for i in range(recording.readout.shape[1])])
    axes.set_xlim(0.5, steps + 0.5)
    return figure


def _readout(axes: Axes, readout: np.ndarray, class_names: Sequence[str]) -> None:
    """Membrane potentials of the output neurons; the three that end highest have colour and name."""
    time = np.arange(1, len(readout) + 1)
    leading = np.argsort(readout[-1])[::-1][:3]
    axes.plot(time, np.delete(readout, leading, axis=1), color=PALE, linewidth=1)
    for place, colour, style in zip(leading, (BLUE, RED, GREEN), ("-", "--", "-.")):
        axes.plot(time, readout[:, place], style, color=colour, label=_as_text(class_names[place]))
    axes.set_title("readout: membrane potential of every class", fontsize=10, loc="left", pad=3)
    axes.set_xlabel("time step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="upper left", fontsize=9)


def _as_text(name: str) -> str:
    """A name of the user's, of a class or a run, as matplotlib shows it unchanged: two dollars would make a formula of
    it, and a legend leaves out what begins with an underscore."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def _bare(axes: Axes, steps: int) -> None:
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(PALE)


def _show_image(axes: Axes, image: np.ndarray) -> None:
    """An image as it is stored, or the sum of an event recording (off red, on blue)."""
    axes.set_axis_off()
    image = np.asarray(image)
    if image.ndim == 4:
        counts = image.sum(axis=0, dtype=np.float64)
        signed = counts[..., -1] - counts[..., 0]
        limit = max(float(np.abs(signed).max()), 1.0)
        axes.imshow(signed, "RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    elif image.shape[-1] == 3:
        axes.imshow(image.astype(np.uint8), interpolation="nearest")
    else:
        axes.imshow(image[..., 0], "gray", interpolation="nearest")


@_styled
def confusion(table: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Share of each class's images by what was predicted; numbers where there is room."""
    classes = len(table)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(3.9)
    shade = axes.imshow(share, "cividis", vmin=0, vmax=1)
    axes.grid(visible=False)
    if classes <= 20:
        long = max(map(len, class_names)) > 2
        names = list(map(_as_text, class_names))
        axes.set_xticks(range(classes), names, rotation=90 if long else 0)
        axes.set_yticks(range(classes), names)
    if classes <= 12:
        for row, column in np.argwhere(table):
            axes.text(column, row, f"{table[row, column]}", ha="center", va="center", fontsize=7.5,
                      color="black" if share[row, column] > 0.5 else "white")
    axes.set(xlabel="predicted", ylabel="true class")
    bar = figure.colorbar(shade, ax=axes, shrink=0.75)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    bar.set_label("share of the class")
    return figure


@_styled
def image_grid(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 4) -> Figure:
    """Images with a line or two of text under each."""
    rows = math.ceil(len(images) / columns)
    figure, axes = _figure(1.5 * rows, rows, columns, squeeze=False)
    for place, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if place < len(images):
            _show_image(ax, images[place])
            ax.set_title(_as_text(captions[place]), fontsize=8.5, y=-0.36, linespacing=1.15)
    return figure


@_styled
def filters(kernel: np.ndarray, most: int = 64) -> Figure:
    """First-layer filters `[height, width, channels, filters]`: as colours for 3 channels, else a row per channel."""
    kernel = kernel[..., :most]
    height, width, channels, count = kernel.shape
    limit = max(float(np.abs(kernel).max()), 1e-12)
    if channels == 3:
        tiles = [0.5 + 0.5 * kernel[..., i] / limit for i in range(count)]
    else:
        tiles = [kernel[:, :, c, i] for c in range(channels) for i in range(count)]
    columns = min(len(tiles), 5 if len(tiles) <= 25 else 8)
    rows = math.ceil(len(tiles) / columns)
    figure, axes = _figure(WIDTH / columns * rows + (0.0 if channels == 3 else 0.5), rows, columns, squeeze=False)
    for place, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if place < len(tiles):
            shade = ax.imshow(tiles[place], "RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    if channels != 3:
        figure.colorbar(shade, ax=axes, orientation="horizontal", label="weight", aspect=40, fraction=0.06)
    return figure


def _short(value: float) -> str:
    """1234567 -> 1.23M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def joules(value: float) -> str:
    """7.1e-6 -> 7.11 uJ, with the Greek letter."""
    for size, unit in ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-12:.3g} pJ"
