"""Where the trained weights lie, and their names. Needs no TensorFlow.

`tfspike.runs.library` reads them, `tfspike.pretrained` makes networks of them and writes them.
"""

from __future__ import annotations

import os

FOLDER = os.path.dirname(os.path.abspath(__file__))


def available(folder: str = FOLDER) -> list[str]:
    """Names of the trained weights in a folder, the library's own unless another is given."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def is_meant(path: str) -> bool:
    """Whether the library's own weights are meant, and no file or folder of that name."""
    return not os.path.exists(path) and path in available()
