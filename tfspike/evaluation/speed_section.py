"""What a report says of speed: images per second on this machine against spikes, beside the model of energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfspike.analysis.energy import EnergyModel
from tfspike.analysis.speed import Point
from tfspike.evaluation import plots
from tfspike.evaluation.pages import Picture

BATCH = 16  # images that are timed


def section(points: Sequence[Point], images: int, machine: str, energy: EnergyModel) -> tuple[str, str, list[Picture]]:
    """Title, text and picture; no picture where nothing was measured.

    Args:
      points: of `tfspike.analysis.speed.measure`.
      images: of the test set.
      machine: that they were measured on, in words.
      energy: constants.
    """
    if not points:
        return "Speed", "", []
    found = records(points, energy)
    scales = ", ".join(f"{point.scale:g}" for point in points)
    text = (f"Measured on {machine}: the first {min(BATCH, images)} test images in one batch, their pixels multiplied "
            f"by {scales}, so that the network fires less and more. Spikes are those of its neurons, without the "
            "input's. The best of a few passes by the clock: other work on the machine makes all of them slower.")
    kernels = list(points[0].per_second)
    caption = ("Above: images per second. Dense convolutions take the same time whatever fires"
               + ("; event-driven (--kernel=events) the time follows the spikes." if "events" in kernels else
                  "; eval.py --kernel=events says why this network is not event-driven here.")
               + f" Below: energy per image, at {energy.describe()}.")
    speeds = {kernel: [record["images_per_second"][kernel] for record in found] for kernel in kernels}
    energies = ([1e-12 * record[name] for record in found] for name in ("snn_pj_per_image", "ann_pj_per_image"))
    figure = plots.speed_over_spikes([record["spikes_per_image"] for record in found], speeds, *energies)
    return "Speed", text, [Picture("speed", figure, caption)]


def records(points: Sequence[Point], energy: EnergyModel) -> list[dict[str, Any]]:
    """The points as plain numbers, fit for JSON."""
    return [{"scale": point.scale, "spikes_per_image": point.spikes, "images_per_second": dict(point.per_second),
             "images_per_cpu_second": dict(point.per_cpu_second), "snn_pj_per_image": energy.picojoules(point.snn),
             "ann_pj_per_image": energy.picojoules(point.ann)} for point in points]
