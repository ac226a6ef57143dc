"""PNG and JPEG files of the user's, read into one array for prediction."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from tfspike.errors import UserError, first_line

__all__ = ["load_images"]


def load_images(paths: Sequence[str | os.PathLike[str]] | str, image_shape: tuple[int, int, int],
                resize: bool = False) -> tuple[np.ndarray, list[str]]:
    """Read PNG and JPEG files, or folders of them, for prediction.

    Args:
      paths: files and folders; folders are searched to any depth, in sorted order.
      image_shape: (H, W, C) of the data set; colour is converted to C = 1 or 3 channels.
      resize: scale other sizes (bilinear, antialiased) instead of refusing them.

    Returns:
      Images uint8 [N, H, W, C] and the file each came from.

    Raises:
      UserError: nothing found, an unreadable file, or a size that differs.
    """
    import tensorflow as tf

    height, width, channels = image_shape
    if channels not in (1, 3):
        raise UserError(f"image files have 1 or 3 channels, this network takes {channels}: it cannot read image files.")
    files = _image_files([paths] if isinstance(paths, (str, os.PathLike)) else paths)
    images = np.empty((len(files), height, width, channels), np.uint8)
    for i, file in enumerate(files):
        try:
            image = tf.io.decode_image(tf.io.read_file(file), channels=channels, expand_animations=False)
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"{file} is not a readable PNG or JPEG ({first_line(error)}); leave it out.") from error
        if tuple(image.shape[:2]) != (height, width):
            if not resize:
                raise UserError(f"{file} is {image.shape[0]}x{image.shape[1]} pixels, the network takes "
                                f"{height}x{width}; scale it to that size, or give --resize (resize=True).")
            image = tf.cast(tf.round(tf.image.resize(image, (height, width), antialias=True)), tf.uint8)
        images[i] = image.numpy()
    return images, files


def _image_files(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    kinds, files = (".png", ".jpg", ".jpeg"), []
    for path in map(pathlib.Path, paths):
        inside = [path] if path.is_file() else path.rglob("*")
        found = sorted(str(f) for f in inside if f.suffix.lower() in kinds and f.is_file())
        if not found:
            raise UserError(f"no PNG or JPEG image at {path}; give image files or folders of them.")
        files += found
    if not files:
        raise UserError("no image given; give PNG or JPEG files or folders of them.")
    return files
