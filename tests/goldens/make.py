"""Writes the golden files of this folder: `PYTHONPATH=.:tests python tests/goldens/make.py`, once, by the source that README.md names.

They are what users keep on their disks: written by an earlier source, they must load and answer as before ever after
(tests/test_goldens.py). So nothing here is ever written anew; a new kind of file joins those that are there.
"""

import json
import os
import shutil
import tempfile

import keras
import nir
import numpy as np

import runs
from tfspike import (
    LIF,
    OverTime,
    PoolingIF,
    Readout,
    SpikingModel,
    ThresholdNorm,
    config,
    datasets,
    encoders,
    models,
    training,
)
from tfspike.export import nir_graph, nir_import

HERE = os.path.dirname(os.path.abspath(__file__))


def residual() -> SpikingModel:
    """A normalised residual network of every kind of layer, 12x12x2, direct input, four steps, "rate"."""
    weights = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=0)

    def conv(x, filters, kernel, strides, name):
        return OverTime(keras.layers.Conv2D(filters, kernel, strides, "same", use_bias=False,
                                            kernel_initializer=weights.clone(), name=name), name=f"{name}_over_time")(x)

    def neurons(x, name):
        return LIF(gradient="rate", surrogate="arctan", surrogate_width=2.0, name=name)(x)

    image = keras.Input((12, 12, 2))
    x = encoders.DirectEncoder(timesteps=4, name="encoder")(image)
    x = neurons(ThresholdNorm(gradient="rate", name="norm1")(conv(x, 6, 3, 1, "conv1")), "lif1")
    x = PoolingIF(gradient="rate", name="pool_if")(OverTime(keras.layers.AveragePooling2D(2), name="pool")(x))
    y = neurons(ThresholdNorm(gradient="rate", name="norm2")(conv(x, 8, 3, 2, "conv2")), "lif2")
    y = ThresholdNorm(gradient="rate", alpha=0.5**0.5, name="norm3")(conv(y, 8, 3, 1, "conv3"))
    x = ThresholdNorm(gradient="rate", alpha=0.5**0.5, name="norm4")(conv(x, 8, 1, 2, "shortcut"))
    x = neurons(keras.layers.Add(name="add")([x, y]), "lif3")
    x = OverTime(keras.layers.Flatten(), name="flatten")(x)
    x = OverTime(keras.layers.Dense(5, use_bias=False, kernel_initializer=weights.clone(), name="output"), name="output_t")(x)
    return SpikingModel(image, Readout(name="readout")(x))


def main() -> None:
    answers = {}
    data = datasets.load("mnist_subset", "test").first(8)
    digits = datasets.describe(data).normalise(data.images)
    lenet = models.create("lenet", (28, 28, 1), 10, timesteps=25, gradient="rate", hidden=30, kappa=4.0, seed=3)
    for name, model, inputs in (
            ("lenet", lenet, digits),
            ("residual", residual(), np.random.default_rng(0).uniform(-1, 1, (8, 12, 12, 2)).astype("float32"))):
        model.compile(keras.optimizers.Adam(1e-4), keras.losses.CategoricalCrossentropy(from_logits=True))
        targets = np.eye(model.output_shape[-1])[np.arange(8) % model.output_shape[-1]]
        model.fit(inputs, targets, batch_size=8, epochs=3, verbose=0)  # so that running statistics are some
        output, counts = model.observe(inputs, seed=5)
        answers |= {f"{name}/inputs": inputs, f"{name}/output": output.numpy()}
        answers |= {f"{name}/count/{layer}": np.mean(count, axis=0) for layer, count in counts.items()}
        model.save(os.path.join(HERE, f"{name}.keras"))
    nir_graph.write(lenet, os.path.join(HERE, "lenet.nir"))
    train = (np.random.default_rng(1).random((8, 25, 28, 28, 1)) < 2 * digits[:, None]).astype("float32")
    read = nir_import.from_nir(nir.read(os.path.join(HERE, "lenet.nir")), timesteps=25)
    answers |= {"nir/inputs": train, "nir/output": read(train).numpy()}

    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run")
        cwd = os.getcwd()
        os.chdir(folder)
        assert training.run(runs.tiny("run", keep_checkpoints=1)) == 0
        os.chdir(cwd)
        kept = os.path.join(HERE, "run")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(run, kept, symlinks=True)
    config.read_run(kept)
    from tfspike import workdir

    model, _, info, _ = workdir.load_run(kept, say=lambda line: None)
    answers["run/output"] = model.observe(info.normalise(data.images), seed=5)[0].numpy()
    np.savez_compressed(os.path.join(HERE, "answers.npz"), **answers)
    print(json.dumps({name: list(value.shape) for name, value in answers.items()}, indent=1))


if __name__ == "__main__":
    main()
