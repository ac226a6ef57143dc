"""What data, which split, which batch is batch k. Needs no TensorFlow until a stream is read."""

from tfspike.faces import on_use

_HOME = {"ALIASES": "catalogue", "KNOWN": "catalogue", "EventFrames": "events",
         **dict.fromkeys(("Arrays", "DatasetInfo", "canonical_name", "check_indices", "check_labels", "check_pixels",
                          "describe", "from_arrays", "load"), "arrays")}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
