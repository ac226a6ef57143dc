"""What data, which split, which batch is batch k. Needs no TensorFlow until a stream is read."""

from tfspike.datasets.arrays import (
    ALIASES,
    KNOWN,
    Arrays,
    DatasetInfo,
    canonical_name,
    check_indices,
    check_labels,
    check_pixels,
    describe,
    from_arrays,
    load,
)
from tfspike.datasets.events import EventFrames

__all__ = ["ALIASES", "KNOWN", "Arrays", "DatasetInfo", "EventFrames", "canonical_name", "check_indices",
           "check_labels", "check_pixels", "describe", "from_arrays", "load"]
