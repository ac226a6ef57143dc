"""Runs an exported file in a process without tfspike: `python run.py FORMAT FILE INPUTS.npz OUTPUTS.npz`.

A file that needs the library it came from is no export. This script imports what a user of the file would import
(TensorFlow, a LiteRT runtime, onnxruntime, or NumPy and `nir`), feeds the recorded inputs and writes what came out.
"""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import numpy as np

Arrays = dict[str, np.ndarray]


def run_saved_model(path: str, given: Arrays) -> Arrays:
    """All endpoints; the stream in pieces of 1, 2, 3, ... steps."""
    import tensorflow as tf

    endpoints = tf.saved_model.load(path).signatures
    found = {}

    def call(name: str, **inputs: Any) -> Arrays:
        outputs = endpoints[name](**{key: tf.constant(value) for key, value in inputs.items()})
        return {key: value.numpy() for key, value in outputs.items()}

    def keep(prefix: str, outputs: Arrays) -> None:
        found.update({f"{prefix}/{key}": value for key, value in outputs.items()})

    spikes = given["spikes"]
    keep("from_spikes", call("from_spikes", spikes=spikes))
    state = call("initial_state", batch=np.int32(len(spikes)))
    names, t, length, outputs = list(state), 0, 1, {}
    while t < spikes.shape[1]:
        outputs = call("stream", spikes=spikes[:, t:t + length], **state)
        state = {name: outputs[name] for name in names}
        t, length = t + length, length + 1
    keep("stream", outputs)
    if "images" in given:
        keep("serving_default", call("serving_default", images=given["images"]))
        keep("serving_again", call("serving_default", images=given["images"]))
        keep("stochastic", call("stochastic", images=given["images"], seed=given["seed"]))
        keep("every_step", call("every_step", images=given["images"]))
    else:
        keep("serving_default", call("serving_default", spikes=spikes))
        keep("every_step", call("every_step", spikes=spikes))
    return found


def run_litert(path: str, given: Arrays) -> Arrays:
    """Sample by sample; the stream step by step."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    interpreter = Interpreter(path)
    signatures = interpreter.get_signature_list()
    rows: dict[str, list[np.ndarray]] = {}

    def keep(prefix: str, outputs: Arrays) -> None:
        for key, value in outputs.items():
            if not key.endswith("_out"):
                rows.setdefault(f"{prefix}/{key}", []).append(value)

    at_once, step = interpreter.get_signature_runner("from_spikes"), interpreter.get_signature_runner("stream")
    for sample in given["spikes"]:
        keep("from_spikes", at_once(spikes=sample[np.newaxis]))
        details = step.get_input_details()
        state = {name: np.zeros(x["shape"], x["dtype"]) for name, x in details.items() if name != "spikes"}
        outputs: Arrays = {}
        for t in range(len(sample)):
            outputs = step(spikes=sample[np.newaxis, t:t + 1], **state)
            state = {name: outputs[f"{name}_out"] for name in state}
        keep("stream", outputs)
    if "serving_default" in signatures and "images" in given:
        whole = interpreter.get_signature_runner("serving_default")
        for image in given["images"]:
            keep("serving_default", whole(images=image[np.newaxis]))
    return {key: np.concatenate(values) for key, values in rows.items()}


def run_nir(path: str, given: Arrays) -> Arrays:
    """The graph in NumPy, see simulate_nir.py beside this file."""
    import simulate_nir

    return {f"from_spikes/{key}": value for key, value in simulate_nir.run(path, given["spikes"]).items()}


def run_onnx(path: str, given: Arrays) -> Arrays:
    """The one graph, on whatever it takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    endpoint = "serving_default" if name == "images" else "from_spikes"
    outputs = session.run(None, {name: given[name]})
    return {f"{endpoint}/{output.name}": value for output, value in zip(session.get_outputs(), outputs)}


_RUNNERS = {"saved_model": run_saved_model, "litert": run_litert, "nir": run_nir, "onnx": run_onnx}


def main() -> None:
    form, path, inputs, outputs = sys.argv[1:]
    with np.load(inputs) as archive:
        given = dict(archive)
    found = _RUNNERS[form](path, given)
    if any(name == "tfspike" or name.startswith("tfspike.") for name in sys.modules):
        raise SystemExit("tfspike was imported: this proves nothing")
    np.savez(outputs, **cast(Any, found))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
