"""Trained networks as files that run without this library, each proven by running it: see docs/exports.md.

    from tfspike import export
    export.save(model, info, ["saved_model", "litert", "nir", "keras", "onnx"], "runs/mine/export")

`info` is the data set's `DatasetInfo`, or anything with `scale`, `offset` and `class_names`.
"""

from tfspike.faces import on_use

_HOME = {"FORMATS": "formats", "save": "formats",
         "to_nir": "nir_graph",
         "from_nir": "nir_import"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
