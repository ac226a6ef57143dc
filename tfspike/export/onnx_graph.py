"""ONNX: the window as one graph of standard operators, for onnxruntime and whatever else reads such files.

The loop over time is a `Loop` whose state are plain tensors. ONNX has no counterpart of TensorFlow's stateless random
numbers, so a Poisson model takes its spikes from outside; direct and latency encoding are part of the graph.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfspike.engine.precision import in_float32
from tfspike.errors import UserError, first_line
from tfspike.export.saved_model import Served

OPSET = 17  # what tf2onnx writes at most, and every onnxruntime since 1.12 reads
_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")


class _Graph(Served):
    """The one endpoint that the graph is: raw images where the encoder draws nothing, spikes of any length else."""

    def endpoint(self) -> tuple[Any, tf.TensorSpec]:
        """`(function, what it takes)`."""
        if self.from_events or self.window.plan.encoder.layer.draws:
            return self._spikes, tf.TensorSpec((None, None, *self.window.spike_shape), tf.float32, "spikes")
        return self._images, tf.TensorSpec((None, *self.window.plan.inputs[0].shape[1:]), tf.float32, "images")

    def _spikes(self, spikes: tf.Tensor) -> dict[str, tf.Tensor]:
        return _without_total(self._from_spikes(spikes))

    def _images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return _without_total(self._from_images(images, 0, chunk=1))


def _without_total(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """ONNX names every tensor once, and "spikes" is what goes in; the total is the sum of `layer_spikes`."""
    return {name: value for name, value in outputs.items() if name != "spikes"}


def require() -> None:
    """Raises UserError unless the packages that write and run the file are there."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX files need the package{'s' if missing[1:] else ''} {', '.join(missing)}: "
                        f"pip install {' '.join(missing)}, or leave the format out.")


def convert(model: Any, info: Any) -> bytes:
    """The content of the file.

    Args:
      model, info: as for `tfspike.export.save`; another precision than float32 is converted to it.

    Raises:
      UserError: a package is missing, or an operation has no standard counterpart.
    """
    require()
    import onnx
    import tf2onnx

    served = _Graph(in_float32(model), info)
    function, spec = served.endpoint()
    try:
        with _quiet():
            proto, _ = tf2onnx.convert.from_function(tf.function(function), input_signature=[spec], opset=OPSET)
        onnx.checker.check_model(proto)
    except Exception as error:  # what it cannot convert, tf2onnx leaves in the graph, or fails on in ways of its own
        raise UserError(f"{model.name!r} has no form of standard ONNX operators ({first_line(error)}); export it as "
                        "saved_model.") from error
    return proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What tf2onnx logs of operations it does not know, the checker says in one sentence."""
    logger = logging.getLogger("tf2onnx")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
