"""The proof of an export: its file, run in a process without tfspike, against the model on the same input.

Spiking networks amplify rounding: a potential that ends a hair's breadth from its threshold may fall to the other side
in another order of summation, and everything behind it changes. So scores and spike counts must agree to rounding,
or few spikes may differ and only where the model's own potentials came that close.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from tfspike.engine import stepper
from tfspike.engine.precision import in_float32
from tfspike.errors import UserError
from tfspike.export.nir_graph import TARGETS
from tfspike.export.window import Window
from tfspike.neurons import gradients
from tfspike.neurons.encoders import SpikeInput

_RUN = os.path.join(os.path.dirname(__file__), "standalone", "run.py")
_ROUNDING = 1e-5  # of scores, and of potentials near their threshold
_FEW = 1e-3  # share of spikes that may differ then
_NIR_ROWS = 2  # samples that NumPy simulates, with every train in memory
_STEPS = 8  # that the model takes at once
_SEED = 7  # for the endpoint that takes one


class Sample:
    """Inputs to check exports with, and what the model makes of them.

    Args:
      model, info, example: as for `tfspike.export.save`.
    """

    def __init__(self, model: Any, info: Any, example: Any = None):
        self.model, self.info, self.window = model, info, Window(model)
        self._known: dict[Any, dict[str, np.ndarray]] = {}
        self.from_events = isinstance(self.window.plan.encoder.layer, SpikeInput)
        shape = tuple(model.inputs[0].shape[1:])
        example = _noise(shape, self.from_events) if example is None else np.asarray(example, np.float32)
        if tuple(example.shape[1:]) != shape or not len(example):
            raise UserError(f"`example` must be of shape [B, {', '.join(map(str, shape))}], like what the model takes. "
                            f"Received: {list(example.shape)}.")
        self.given: dict[str, np.ndarray] = {"seed": np.array(_SEED, np.int32)}
        if self.from_events:
            self.given["spikes"] = example
        else:
            self.given["images"] = example
            self.images = example * np.asarray(info.scale, np.float32) + np.asarray(info.offset, np.float32)
            self.given["spikes"] = np.moveaxis(self.encoded(0), 0, 1)

    def encoded(self, seed: int, in_single: bool = False) -> np.ndarray:
        """The encoder's train, `[T, B, ...]` float32."""
        window = Window(in_float32(self.model)) if in_single else self.window
        encode = window.encoder_of(tf.constant(self.images), seed)
        return tf.cast(encode(0, window.timesteps), tf.float32).numpy()

    def expected(self, endpoint: str, in_single: bool) -> dict[str, np.ndarray]:
        """`expected_of` for what `endpoint` was given; in float32 where the format knows nothing else."""
        from_images = endpoint in ("serving_default", "every_step") and not self.from_events
        seed = _SEED if endpoint == "stochastic" else 0 if from_images else None
        key = (seed, in_single)
        if key not in self._known:
            train = np.moveaxis(self.given["spikes"], 1, 0) if seed is None else self.encoded(seed, in_single)
            self._known[key] = expected_of(in_float32(self.model) if in_single else self.model, train)
        return self._known[key]


class AnnSample:
    """The same for an ANN (`tfspike.models.ReluModel`), whose file is loaded and compared with it.

    Args:
      model, info, example: as for `tfspike.export.save`.
    """

    def __init__(self, model: Any, info: Any, example: Any = None):
        self.model = model
        shape = tuple(model.inputs[0].shape[1:])
        example = _noise(shape, False) if example is None else np.asarray(example, np.float32)
        self.images = example * np.asarray(info.scale, np.float32) + np.asarray(info.offset, np.float32)


def _noise(shape: tuple[int, ...], binary: bool) -> np.ndarray:
    numbers = np.random.default_rng(0).random((2, *shape))
    return (numbers < 0.3).astype(np.float32) if binary else (255 * numbers).astype(np.uint8).astype(np.float32)


def expected_of(model: Any, train: np.ndarray) -> dict[str, np.ndarray]:
    """What the model makes of a given train `[T, B, ...]`.

    Returns:
      `scores` `[B, classes]`, `every_step` `[B, T, classes]`, `layer_spikes` `[B, layers]`, and `closest`, the smallest
      |u - threshold| of any neuron at any step.
    """
    plan, closest, readouts = model.plan, np.inf, []
    spikes = np.zeros((train.shape[1], len(plan.spiking)), np.int64)
    pieces = (tf.constant(train[t:t + _STEPS]) for t in range(0, len(train), _STEPS))
    for stretch in stepper.through(plan, pieces, train.shape[1]):
        readouts.append(stretch.readout.numpy())
        for i, (call, layer) in enumerate(zip(plan.spiking, stretch.layers.values())):
            fired = tf.cast(layer.spikes, tf.float32)
            spikes[:, i] += tf.reduce_sum(fired, (0, *range(2, len(fired.shape)))).numpy().astype(np.int64)
            thresholds = np.asarray(call.layer.neuron.threshold, np.float32)
            closest = min(closest, _nearest(tf.stack(layer.potentials).numpy(), thresholds))
    steps = np.arange(1, len(train) + 1, dtype=np.float32)[:, None, None]
    every_step = np.moveaxis(np.concatenate(readouts) / steps, 0, 1)
    scores, = plan.behind_readout(tf.constant(every_step[:, -1]))
    return {"scores": scores.numpy(), "every_step": every_step, "closest": np.float32(closest), "layer_spikes": spikes}


def _nearest(potentials: np.ndarray, threshold: np.ndarray) -> float:
    """The smallest |u - threshold| above 0 (a pooling neuron's quarters meet .75 exactly, in every simulator)."""
    distance = np.abs(potentials - threshold)
    return float(np.min(distance, where=distance > 0, initial=np.inf))


def run_standalone(form: str, path: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the file gives for the inputs, from a process of its own.

    Raises:
      UserError: that process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = (os.path.join(folder, name) for name in ("inputs.npz", "outputs.npz"))
        np.savez(inputs, **cast(Any, given))
        done = subprocess.run([sys.executable, _RUN, form, os.path.abspath(path), inputs, outputs], capture_output=True,
                              text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"})
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1][:300]
            raise UserError(f"the {form} file was written but does not run by itself ({last}); it was removed.")
        with np.load(outputs) as archive:
            return dict(archive)


def check(form: str, path: str, sample: Sample | AnnSample, weights: str = "float32",
          target: str = "nir") -> dict[str, Any]:
    """Runs a file and compares it with the model.

    Returns:
      What was found, see `tfspike.export.save`.

    Raises:
      UserError: it does not compute what the model does.
    """
    if form == "keras" or isinstance(sample, AnnSample):
        return _check_keras(path, sample)
    rows = slice(_NIR_ROWS if form == "nir" else None)
    found = run_standalone(form, path, {key: x[rows] if x.ndim else x for key, x in sample.given.items()})
    if form == "nir" and not TARGETS[target].has_readout:
        found.update(_integrated(found["from_spikes/output"], sample.window))
    endpoints = sorted({key.split("/")[0] for key in found} - {"serving_again"})
    endpoints.sort(key="every_step".__eq__)  # last: it has no spikes of its own
    exact = form != "litert" or weights == "float32"
    report: dict[str, Any] = {"endpoints": endpoints, "max_error": 0.0, "spikes_differing": 0}
    if not exact:
        report["label_agreement"] = 1.0
    for endpoint in endpoints:
        want = {key: x[rows] if x.ndim else x
                for key, x in sample.expected(endpoint, in_single=form != "saved_model").items()}
        if endpoint == "every_step":
            _compare_scores(form, endpoint, found["every_step/scores"], want["every_step"], want,
                            report["spikes_differing"], report)
            continue
        scores, spikes = found[f"{endpoint}/scores"], found[f"{endpoint}/layer_spikes"]
        report.setdefault("spikes", int(want["layer_spikes"].sum()))
        report.setdefault("closest_to_threshold", float(want["closest"]))
        fired = want["layer_spikes"].sum(0) > 0
        report.setdefault("silent_layers", [name for name, ok in zip(sample.window.layer_names, fired) if not ok])
        if exact:
            differing = _compare_spikes(form, endpoint, spikes, want, report)
            _compare_scores(form, endpoint, scores, want["scores"], want, differing, report)
        else:
            agree = float(np.mean(scores.argmax(-1) == want["scores"].argmax(-1)))
            report["label_agreement"] = min(report["label_agreement"], agree)
            report["max_error"] = max(report["max_error"], float(np.abs(scores - want["scores"]).max()))
            differing = int(np.abs(spikes - want["layer_spikes"]).sum())
            report["spikes_differing"] = max(report["spikes_differing"], differing)
    if "serving_again/scores" in found and not np.array_equal(found["serving_again/scores"],
                                                             found["serving_default/scores"]):
        raise UserError("serving_default of the SavedModel gives another answer when called again; it was removed.")
    return report


def _integrated(currents: np.ndarray, window: Window) -> dict[str, np.ndarray]:
    """Scores from the readout's currents `[B, T, classes]` of a graph that ends there."""
    train = tf.constant(np.moveaxis(currents, 1, 0))
    readout = window.plan.readout.layer
    membranes = gradients.readout_window(train, tf.zeros_like(train[0]), readout.leak, readout.growth)
    return {"from_spikes/scores": (membranes[-1] / len(train)).numpy()}


def _compare_spikes(form: str, endpoint: str, found: np.ndarray, want: dict[str, np.ndarray],
                    report: dict[str, Any]) -> int:
    differing = int(np.abs(found.astype(np.int64) - want["layer_spikes"]).sum())
    report["spikes_differing"] = max(report["spikes_differing"], differing)
    total = int(want["layer_spikes"].sum())
    if differing and (want["closest"] > _ROUNDING or differing > max(3, _FEW * total)):
        raise UserError(f"{endpoint} of the {form} file fires {int(found.sum())} spikes where the model fires {total} "
                        f"({differing} apart), and potentials as near as {want['closest']:.1e} to a threshold do not "
                        "explain that many; it was removed.")
    return differing


def _compare_scores(form: str, endpoint: str, found: np.ndarray, want: np.ndarray, about: dict[str, np.ndarray],
                    differing: int, report: dict[str, Any]) -> None:
    error = float(np.abs(found - want).max()) if found.shape == want.shape else np.inf
    report["max_error"] = max(report["max_error"], error)
    size = float(np.abs(want).max())
    # flipped spikes move scores by a tenth of the largest at most, one that only comes a step later by a hundredth
    allowed = 0.1 * size if differing else 0.01 * size if about["closest"] < _ROUNDING else 0.0
    if not error <= max(_ROUNDING * (1 + size), allowed):
        raise UserError(f"{endpoint} of the {form} file gives scores that differ by {error:.1e} from the model's; "
                        "it was removed.")


def _check_keras(path: str, sample: Sample | AnnSample) -> dict[str, Any]:
    inputs = sample.given["spikes"] if isinstance(sample, Sample) and sample.from_events else sample.images
    again = keras.models.load_model(path)
    if isinstance(sample, Sample):  # a file does not say which kernel computes it; another one may add otherwise
        again.configure_engine(*sample.model.engine_options)
    want, found = sample.model(inputs).numpy(), again(inputs).numpy()
    if not np.array_equal(want, found):
        raise UserError(f"the .keras file gives scores that differ by {np.abs(want - found).max():.1e} from the "
                        "model's; it was removed.")
    return {"endpoints": ["load_model"], "max_error": 0.0}
