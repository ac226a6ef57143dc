"""Reading of NumPy archives that others may have damaged."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from tfspike.errors import UserError, first_line


def read_npz(path: str | os.PathLike[str], fields: Sequence[str], advice: str) -> dict[str, np.ndarray]:
    """Returns `{field: array}` of an .npz file; executes nothing that is in it.

    Args:
      path: the file.
      fields: arrays that it must have.
      advice: what to do if it cannot be read, as the end of a sentence.

    Raises:
      UserError: the file cannot be read, or lacks a field.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [field for field in fields if field not in archive]
            if not missing:
                return {field: archive[field] for field in fields}
            has = ", ".join(archive.files) or "none"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); {advice}.") from error
    raise UserError(f"{path} lacks the fields {', '.join(missing)}, it has {has}; {advice}.")
