"""Why deep spiking networks stop learning, measured: what docs/depth.md shows.

    python docs/depth.py --data_dir=DIR --out=docs/images                  # about ten minutes on two cores
    python docs/depth.py --nets=resnet20 --timesteps=4 --images=4          # a first look, on noise
    python docs/depth.py --runs RUN RUN --data_dir=DIR --images=16         # trained networks instead, as a table

For every layer of a network with its first weights, or those of a finished run, on one batch: the true slope of the
firing rate against the drive (regression over neurons and images), the slope that the gradient takes, silent and
saturated neurons, the spread of rates from layer to layer (forward gain) and the size of the gradient "rate" (backward
gain).
"""

import argparse
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfspike import datasets, models
from tfspike.engine import plan
from tfspike.evaluation import plots
from tfspike.models import losses
from tfspike.models.initialisation import initialise_rates
from tfspike.neurons import gradients
from tfspike.neurons.layers import SpikingLayer
from tfspike.neurons.normalisation import ThresholdNorm
from tfspike.runs import loading

NETS = {"vgg9": "cifar10", "resnet11": "cifar10", "resnet20": "svhn_cropped"}
# What is compared: how the network begins, what stands for the slope.
METHODS = {
    "paper": {"init": "normal"},
    "rate-targeted weights": {"init": "rate"},
    "tdBN and arctan": {"norm": "tdbn", "surrogate": "arctan", "surrogate_width": 2.0, "init": "normal",
                        "encoder": "direct", "pooling": "average", "kappa": 2.0},
}
COLOURS = dict(zip(METHODS, (plots.RED, plots.ORANGE, plots.BLUE)))
PANELS = {"true_slope": "true slope of rate against drive", "taken_slope": "slope that the gradient takes, mean",
          "silent": "share of neurons and images without a spike", "spread": "spread of rates, spikes per step",
          "gradient": "gradient of the drive, last layer = 1"}


def build(net: str, timesteps: int, images: np.ndarray, method: dict, seed: int = 0):
    """The network with its first weights; input is Poisson, as in the paper, but for the recipe of deep networks."""
    settings = {key: value for key, value in method.items() if key != "init"}
    model = models.create(net, images.shape[1:], 10, timesteps, gradient="rate", dropout=0.0, seed=seed, **settings)
    if method["init"] == "rate":
        initialise_rates(model, images, 0.1, seed)
    return model


def measure(model, images: np.ndarray, labels: np.ndarray) -> list[dict]:
    """One row per layer of LIF or pooling neurons, in the order of the forward pass."""
    network = model.plan
    seen: list[tuple] = []
    with tf.GradientTape() as tape:

        def handler(call, args, kwargs):
            if isinstance(call.layer, ThresholdNorm):
                return call.layer(*args, training=True)
            if not isinstance(call.layer, SpikingLayer):
                return plan.plain(call, args, kwargs)
            tape.watch(args[0])
            spikes, state = call.layer(*args, return_state=True)
            seen.append((call.layer, args[0], spikes, state))
            return spikes

        train = network.encoder.layer(tf.constant(images), training=False, seed=0)
        output = network.readout.layer(network.run_window(train, handler)[network.readout.source])
        loss = tf.reduce_sum(losses.per_record("squared", output, labels))
    sizes = [float(tf.norm(tf.reduce_sum(grad, axis=0))) for grad in tape.gradient(loss, [row[1] for row in seen])]
    return [_row(*row, size=size, last=sizes[-1]) for row, size in zip(seen, sizes)]


def _row(layer, currents, spikes, state, size: float, last: float) -> dict:
    drive, rate = (tf.reduce_mean(x, axis=0).numpy().ravel().astype("d") for x in (currents, spikes))
    taken = gradients.slope(state.count, state.trace, layer.neuron, currents.shape[0]).numpy()
    return {"layer": layer.name, "rate": float(rate.mean()), "spread": float(rate.std()),
            "true_slope": float(np.mean((drive - drive.mean()) * rate) / max(drive.var(), 1e-30)),
            "taken_slope": float(taken.mean()), "silent": float(np.mean(rate == 0.0)),
            "saturated": float(np.mean(rate > 0.95)), "gradient": size / last if last else 0.0}


def trained(folder: str, data_dir: str | None, count: int) -> list[dict]:
    """The rows of a run's best weights, on images that it was trained with."""
    model, config, info, _ = loading.load_run(folder, "best")
    data = loading.load_data(config, info, "train", data_dir).some(count)
    return measure(model, np.asarray(info.normalise(data.images), "f"), np.asarray(data.labels))


def table(rows: list[dict]) -> str:
    """The rows as lines for a reader."""
    columns = ("rate", "true_slope", "taken_slope", "silent", "gradient")
    lines = [f"{'layer':<22}" + "".join(f"{name:>13}" for name in columns)]
    for row in rows:
        lines.append(f"{row['layer']:<22}" + "".join(f"{row[name]:>13.4g}" for name in columns))
    return "\n".join(lines)


def picture(found: dict, net: str, windows: list[int]) -> Figure:
    """Layers from left to right, a column for every window, a row for every quantity."""
    with matplotlib.rc_context(plots._STYLE):
        figure = Figure(figsize=(3.6 * len(windows) + 1, 2.1 * len(PANELS)), layout="constrained")
        axes = figure.subplots(len(PANELS), len(windows), sharex=True, sharey="row", squeeze=False)
        for column, timesteps in enumerate(windows):
            axes[0, column].set_title(f"{net}, T = {timesteps}")
            axes[-1, column].set_xlabel("layer of neurons")
            for row, (key, words) in zip(axes[:, column], PANELS.items()):
                for method, rows in found[net][str(timesteps)].items():
                    values = np.array([layer[key] for layer in rows])
                    if key == "gradient":
                        values = np.where(values > 0, values, np.nan)
                    row.plot(np.arange(1, len(rows) + 1), values, ".-", color=COLOURS[method], label=method)
                if key == "gradient":
                    row.set_yscale("log")
                if column == 0:
                    row.set_title(words, loc="left", fontsize=10, y=1.0 if row is not axes[0, 0] else 1.14)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--timesteps", nargs="+", type=int, default=[4, 25, 100])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--data_dir", help="prepared data sets; without it the images are noise")
    parser.add_argument("--runs", nargs="+", default=[], help="folders of finished runs, in place of first weights")
    parser.add_argument("--out", default="depth")
    options = parser.parse_args(argv)
    for run in options.runs:
        print(f"{run}\n{table(trained(run, options.data_dir, options.images))}", flush=True)
    if options.runs:
        return
    os.makedirs(options.out, exist_ok=True)
    found: dict = {}
    for net in options.nets:
        if options.data_dir:
            data = datasets.load(NETS[net], "train", options.data_dir)
            images = datasets.describe(data).normalise(data.images[:options.images]).astype("f")
            labels = data.labels[:options.images]
        else:
            rng = np.random.default_rng(0)
            images, labels = rng.uniform(-1, 1, (options.images, 32, 32, 3)).astype("f"), np.arange(options.images) % 10
        for timesteps in options.timesteps:
            for name, method in METHODS.items():
                rows = measure(build(net, timesteps, images, method), images, labels)
                found.setdefault(net, {}).setdefault(str(timesteps), {})[name] = rows
                print(f"{net} T = {timesteps:3d} {name:<22} gradient of the first layer {rows[0]['gradient']:.1e}, "
                      f"last rate {rows[-1]['rate']:.4f}, silent {rows[-1]['silent']:.2f}", flush=True)
        with open(os.path.join(options.out, f"depth_{net}.png"), "wb") as file:
            file.write(plots.png(picture(found, net, options.timesteps)))
    with open(os.path.join(options.out, "depth.json"), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
