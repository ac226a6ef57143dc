"""Which formats there are, and `save`, which writes each and proves it by running it."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from tfspike import files
from tfspike.errors import UserError

_NAMES = {"saved_model": "saved_model", "litert": "model.tflite", "nir": "model.nir", "keras": "model.keras",
          "onnx": "model.onnx"}
FORMATS = tuple(_NAMES)


def save(model: Any, info: Any, formats: Sequence[str], folder: str | os.PathLike[str], example: Any = None, *,
         weights: str = "float32", target: str = "nir") -> dict[str, dict[str, Any]]:
    """Writes a model in every format asked for, and runs each file before it gets its name.

    A file is written beside its place, run on `example` in a process that does not import tfspike, compared with the
    model, and only then renamed: what lies in `folder` under its name is whole and proven, whenever the program dies.
    Files are for inference: normalisation is folded into the weights (`tfspike.folding.fold`).

    Args:
      model: a `tfspike.models.SpikingModel`, or a `tfspike.models.ReluModel` (as "keras" alone).
      info: has `scale`, `offset` (x = p * scale + offset for pixels p of 0 to 255) and `class_names`.
      formats: some of `FORMATS`.
      folder: where the files go: saved_model/, model.tflite, model.nir, model.keras, model.onnx.
      example: raw images `[B, H, W, C]` of 0 to 255, or spike trains `[B, T, H, W, C]` for event data;
        None draws noise.
      weights: of the LiteRT file: "float32", "float16" or "dynamic_range" (the last two are measured, not held to
        equality).
      target: conventions of the NIR file, one of `tfspike.export.nir_graph.TARGETS`.

    Returns:
      By format: `path`, `bytes`, and what the check found: `endpoints`, `max_error` (of scores), `spikes` (of the
      example, all layers), `spikes_differing`, `closest_to_threshold`, `silent_layers`.

    Raises:
      UserError: an unknown format, a folder that cannot be written, an `example` of another shape, a model or package
        that the format cannot do, or a file that does not compute what the model does.
    """
    for form in formats:
        if form not in FORMATS:
            raise UserError(f"`formats` takes {', '.join(FORMATS)}. Received: {form!r}.")
    if not all(hasattr(info, name) for name in ("scale", "offset", "class_names")):
        raise UserError("`info` must have scale, offset and class_names: tfspike.datasets.describe(data) has them. "
                        f"Received: {type(info).__name__}.")
    from tfspike.engine.folding import fold
    from tfspike.export import verify  # TensorFlow, only now
    from tfspike.models.ann import ReluModel
    from tfspike.models.network import window_of

    if isinstance(model, ReluModel) and set(formats) - {"keras"}:
        raise UserError("An ANN (neuron='relu') is saved as keras alone; convert it to a spiking network for other "
                        f"formats. Received: formats={','.join(formats)}.")
    if window_of(model) is not None:
        model = fold(model)
    sample = (verify.AnnSample if isinstance(model, ReluModel) else verify.Sample)(model, info, example)
    # all of them before the first is written: what cannot be converted leaves nothing behind
    writers = {form: _writer(form, model, info, weights, target) for form in formats}
    try:
        os.makedirs(folder, exist_ok=True)
        return {form: _place(os.path.join(os.fspath(folder), _NAMES[form]), writers[form],
                             functools.partial(verify.check, form, sample=sample, weights=weights, target=target))
                for form in formats}
    except OSError as error:
        raise UserError(f"cannot write exports to {os.fspath(folder)} ({error.strerror or error}); "
                        "give a folder that can be written.") from error


def refuse(model: Any, formats: Sequence[str]) -> None:
    """To be asked before a training: what `save` would say behind it, whatever the weights have become.

    Args:
      model: as for `save`.
      formats: some of `FORMATS`.

    Raises:
      UserError: a package is missing, a format has no counterpart of these neurons, or a layer has code of its own.
    """
    from tfspike.export.window import Window  # TensorFlow, only now
    from tfspike.models.network import window_of

    if formats and window_of(model) is not None:
        Window(model)
    if "onnx" in formats:
        from tfspike.export import onnx_graph
        onnx_graph.require()
    if "litert" in formats:
        from tfspike.export import litert
        litert.refuse_starts(model)
    if "nir" in formats:
        from tfspike.engine.folding import fold
        from tfspike.export import nir_graph
        for call in model.required_plan().spiking:  # folded, starts that move would stand at their first value
            nir_graph.refuse_neurons(call)
        nir_graph.to_nir(fold(model))


def _writer(form: str, model: Any, info: Any, weights: str, target: str) -> Callable[[str], Any]:
    """Converts the model, and returns what writes it to a path."""
    if form == "keras":
        return model.save
    if form == "nir":
        from tfspike.export import nir_graph
        return functools.partial(nir_graph.write_graph, nir_graph.to_nir(model, target))
    if form == "litert":
        from tfspike.export import litert
        return functools.partial(_write_bytes, litert.convert(model, info, weights))
    if form == "onnx":
        from tfspike.export import onnx_graph
        return functools.partial(_write_bytes, onnx_graph.convert(model, info))
    from tfspike.export import saved_model
    return lambda path: saved_model.write(model, info, path)


def _write_bytes(content: bytes, path: str) -> None:
    files.write_bytes(path, lambda file: file.write(content))


def _place(path: str, write: Callable[[str], Any], check: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Writes and checks beside `path`, then renames."""
    folder, name = os.path.split(path)
    partial, old = (os.path.join(folder, f".{kind}-{name}") for kind in ("partial", "old"))
    if os.path.exists(old) and not os.path.exists(path):
        os.rename(old, path)  # killed between the two renames below
    _remove(old)
    _remove(partial)
    try:
        write(partial)
        report = check(partial)
        if os.path.isdir(path):
            os.rename(path, old)  # a folder cannot be renamed over another
        os.replace(partial, path)
    finally:
        _remove(partial)
    _remove(old)
    return {"path": path, "bytes": _size(path), **report}


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(path) for name in names)
