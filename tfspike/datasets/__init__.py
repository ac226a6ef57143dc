"""What data, which split, which batch is batch k. Needs no TensorFlow until a stream is read."""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.datasets.arrays import Arrays as Arrays
    from tfspike.datasets.arrays import DatasetInfo as DatasetInfo
    from tfspike.datasets.arrays import canonical_name as canonical_name
    from tfspike.datasets.arrays import check_indices as check_indices
    from tfspike.datasets.arrays import check_labels as check_labels
    from tfspike.datasets.arrays import check_pixels as check_pixels
    from tfspike.datasets.arrays import describe as describe
    from tfspike.datasets.arrays import from_arrays as from_arrays
    from tfspike.datasets.arrays import load as load
    from tfspike.datasets.catalogue import ALIASES as ALIASES
    from tfspike.datasets.catalogue import KNOWN as KNOWN
    from tfspike.datasets.events import EventFrames as EventFrames
    from tfspike.datasets.recordings import from_recordings as from_recordings

_HOME = {"ALIASES": "catalogue", "KNOWN": "catalogue", "EventFrames": "events",
         "from_recordings": "recordings",
         **dict.fromkeys(("Arrays", "DatasetInfo", "canonical_name", "check_indices", "check_labels", "check_pixels",
                          "describe", "from_arrays", "load"), "arrays")}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
