"""Trained networks as files that run without this library, each proven by running it: see docs/exports.md.

    from tfspike import export
    export.save(model, info, ["saved_model", "litert", "nir", "keras", "onnx"], "runs/mine/export")

`info` is the data set's `DatasetInfo`, or anything with `scale`, `offset` and `class_names`.
"""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.export.formats import FORMATS as FORMATS
    from tfspike.export.formats import refuse as refuse
    from tfspike.export.formats import save as save
    from tfspike.export.nir_graph import to_nir as to_nir
    from tfspike.export.nir_import import from_nir as from_nir

_HOME = {"FORMATS": "formats", "refuse": "formats", "save": "formats",
         "to_nir": "nir_graph",
         "from_nir": "nir_import"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
