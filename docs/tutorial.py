"""An own spiking network in a hundred lines: built from layers, trained, looked at, exported.

    python docs/tutorial.py                                 # about a minute; writes into tutorial/
    python docs/tutorial.py --images=500 --epochs=1         # a first look

Nothing is downloaded: the digits come with the library. Read it from top to bottom.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on its own start

import keras
import numpy as np
import tensorflow as tf

from tfspike import LIF, OverTime, PoissonEncoder, PoolingIF, Readout, SpikingModel, datasets, export
from tfspike.analysis import simulation
from tfspike.evaluation import plots


def build(timesteps: int) -> SpikingModel:
    """A small convolutional network for 28x28 images: `[B, 28, 28, 1]` to scores `[B, 10]`."""

    def synapse(layer: type, *size: int) -> OverTime:
        # The paper's weights: no bias, normal with variance 2 / fan-in. Much smaller ones, and no neuron would fire.
        weights = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=size[0])
        return OverTime(layer(*size, use_bias=False, kernel_initializer=weights))

    image = keras.Input((28, 28, 1))
    # At every step a pixel of value x fires with probability |x|: [B, H, W, C] becomes [T, B, H, W, C].
    x = PoissonEncoder(timesteps)(image)
    # OverTime applies an ordinary Keras layer at every step; LIF neurons turn its currents into spikes.
    # gradient="rate" goes back once through firing rates; "event", the default, goes back through every step.
    x = LIF(leak=0.99, gradient="rate", name="lif1")(synapse(keras.layers.Conv2D, 12, 5)(x))  # 24x24
    # A pooling neuron adds up the mean of four neurons' spikes, a quarter for each, and fires when the sum exceeds its
    # threshold of .75: once for four spikes. Its membrane then starts again from 0.
    x = PoolingIF(gradient="rate", name="pool1")(OverTime(keras.layers.AveragePooling2D(2))(x))  # 12x12
    x = LIF(leak=0.99, gradient="rate", name="lif2")(synapse(keras.layers.Conv2D, 24, 5)(x))  # 8x8
    x = PoolingIF(gradient="rate", name="pool2")(OverTime(keras.layers.AveragePooling2D(2))(x))  # 4x4
    x = synapse(keras.layers.Dense, 10)(OverTime(keras.layers.Flatten())(x))
    # The output neurons never fire: their membrane at the end of the window, divided by T, is the score.
    return SpikingModel(image, Readout(leak=0.99)(x))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the tutorial; returns `accuracy` on the test images and `export_error`, the largest error of a score."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--images", type=int, default=6000, help="training images, at most 6000")
    flags.add_argument("--epochs", type=int, default=4)
    flags.add_argument("--timesteps", type=int, default=20, help="T, steps in the window")
    flags.add_argument("--out", default="tutorial", help="folder of what is written")
    options = flags.parse_args(argv)
    os.makedirs(options.out, exist_ok=True)

    # 1. Data: bytes of 0 to 255, which the set's own scaling turns into x of 0 to .5.
    train, test = (datasets.load("mnist_subset", split) for split in ("train", "test"))
    info = datasets.describe(train)
    images, labels = info.normalise(train.images[:options.images]), train.labels[:options.images]
    test_images = info.normalise(test.images)

    # 2. Training, with plain Keras. The paper's loss is the squared distance of the scores from 1 and 0.
    keras.utils.set_random_seed(0)
    model = build(options.timesteps)
    model.summary()
    model.compile(keras.optimizers.Adam(2e-3, clipnorm=1.0), "mse", metrics=["accuracy"])
    model.fit(images, keras.utils.to_categorical(labels, 10), batch_size=50, epochs=options.epochs, verbose=2)

    # 3. What it has learnt, and what its neurons did for it.
    spikes, right = dict.fromkeys(model.spiking_layers, 0.0), 0
    for start in range(0, len(test), 200):
        scores, activity = model.observe(test_images[start:start + 200])
        right += int(np.sum(np.argmax(scores, axis=1) == test.labels[start:start + 200]))
        for layer, count in activity.items():
            spikes[layer] += float(tf.reduce_sum(count))
    accuracy = right / len(test)
    print(f"test accuracy {100 * accuracy:.1f} % of {len(test)} images")
    print("spikes per image: " + ", ".join(f"{layer} {total / len(test):,.0f}" for layer, total in spikes.items()))

    # 4. Every spike of a few neurons while the network reads the first test image.
    recording = simulation.record(model, test_images[0])
    raster = os.path.join(options.out, "raster.png")
    with open(raster, "wb") as file:
        file.write(plots.png(plots.raster(recording, test.images[0], info.class_names)))
    print(f"raster: {raster}")

    # 5. A SavedModel, which runs without tfspike. `save` has run it already; here is how anybody else would.
    report = export.save(model, info, ["saved_model"], options.out, test.images[:4].astype(np.float32))["saved_model"]
    serve = tf.saved_model.load(report["path"]).signatures["serving_default"]
    answer = serve(images=tf.constant(test.images[:8], tf.float32))  # raw pixels: the scaling is inside
    error = float(np.abs(answer["scores"] - model(test_images[:8])).max())
    print(f"export: {report['path']}, {report['bytes']:,} bytes; largest difference of a score {error:.1e}")
    if error > 1e-5:
        raise SystemExit("The exported file does not give the model's scores.")
    return {"accuracy": accuracy, "export_error": error}


if __name__ == "__main__":
    main()
