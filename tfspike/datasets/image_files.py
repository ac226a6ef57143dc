"""Picture files of the user's, read into one array for training and prediction.

What a file says beside its pixels is followed, and whatever changes pixels is said in one warning per kind:

* **Orientation** (EXIF, of phones and cameras): the picture is turned upright.
* **Transparency**: a picture is put on black if its ink, the mean of its pixels weighted by their opacity, is bright
  (128 or more of 255), and on white otherwise, so that ink of either kind stays visible.
* **Ground**: in sets like MNIST, ink is bright on a dark ground. For those (`dark_ground`) a picture whose border is
  bright, as of ink on paper, is inverted: black ink on a transparent ground becomes white ink on black.
* **Depth and colours**: 16 bits are scaled to 8; palettes, single bits, grey and CMYK become grey or RGB.
* **Size**: with `resize` a picture is scaled as a whole, never stretched; what is then missing on two sides has the
  median colour of its border.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tfspike.datasets.class_folders import files_below
from tfspike.errors import UserError, first_line

__all__ = ["Header", "find", "headers", "load_images"]

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # by content, whatever a file is called
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")  # searched for in folders
_GREY = ("1", "L", "LA", "La")  # modes, and all that begin with "I"
_AT_ONCE = 256  # files that are read before the first error among them ends it
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_BRIGHT = 128  # from here on of 255
_BORDER_SHARE = 0.9  # of the border's pixels that are bright where a picture has a bright ground

_ON_BLACK = "has transparent parts and bright ink, and was put on black"
_ON_WHITE = "has transparent parts and dark ink, and was put on white"
_INVERTED = "has dark ink on a bright ground, the data set has bright ink on a dark one, and was inverted"
_PADDED = "has other proportions than the network's images: filled up with the colour of its border"
_LEFT_OUT = "is in the folder, has none of the suffixes " + ", ".join(_SUFFIXES) + ", and was left out"


class Header(NamedTuple):
    """What a picture file says of itself before it is decoded: height and width in pixels, upright, and its colours."""

    height: int
    width: int
    is_grey: bool


def load_images(paths: Sequence[str | os.PathLike[str]] | str, image_shape: tuple[int, int, int],
                resize: bool = False, dark_ground: bool = False) -> tuple[np.ndarray, list[str]]:
    """Reads PNG and JPEG files (also BMP, WebP and GIF of one picture), or folders of them.

    Args:
      paths: files and folders; folders are searched to any depth, in sorted order, without hidden files.
      image_shape: (H, W, C) of the data set; colour is converted to C = 1 or 3 channels.
      resize: scale other sizes (bilinear, antialiased) instead of refusing them.
      dark_ground: the data set has bright ink on a dark ground, see the module.

    Returns:
      Images uint8 [N, H, W, C] and the file each came from.

    Raises:
      UserError: nothing found, an unreadable, animated or wholly transparent file, or a size that differs.
    """
    if image_shape[2] not in (1, 3):
        raise UserError(f"image files have 1 or 3 channels, this network takes {image_shape[2]}: it cannot read image "
                        "files.")
    notes: dict[str, list[str]] = {}
    files = _image_files([paths] if isinstance(paths, (str, os.PathLike)) else paths, notes)
    images = np.empty((len(files), *image_shape), np.uint8)

    def read(i: int) -> None:
        images[i] = _pixels(files[i], image_shape, resize, dark_ground, notes)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool, _large_pictures_refused():
        for start in range(0, len(files), _AT_ONCE):
            list(pool.map(read, range(start, min(start + _AT_ONCE, len(files)))))
    _say(notes)
    return images, files


def find(folders: Sequence[str | os.PathLike[str]]) -> list[list[str]]:
    """The picture files in each of some folders, as `load_images` looks for them; one warning for what is none."""
    notes: dict[str, list[str]] = {}
    found = [_search(pathlib.Path(folder), notes) for folder in folders]
    _say(notes)
    return found


def headers(files: Sequence[str]) -> list[Header]:
    """What each file says of itself, without decoding it; raises UserError as `load_images`."""
    with _large_pictures_refused():
        return [_header(file) for file in files]


def _say(notes: dict[str, list[str]]) -> None:
    for note, where in sorted(notes.items()):
        more = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
        warnings.warn(f"{min(where)}{more} {note}.", stacklevel=3)


def _image_files(paths: Sequence[str | os.PathLike[str]], notes: dict[str, list[str]]) -> list[str]:
    files: list[str] = []
    for path in map(pathlib.Path, paths):
        found = [str(path)] if path.is_file() else _search(path, notes)
        if not found:
            raise UserError(f"no PNG or JPEG image at {path}{'' if path.exists() else ', which does not exist'}; give "
                            "image files or folders of them.")
        files += found
    if not files:
        raise UserError("no image given; give PNG or JPEG files or folders of them.")
    return files


def _search(folder: pathlib.Path, notes: dict[str, list[str]]) -> list[str]:
    """Picture files at any depth, sorted, without hidden ones and those in hidden folders."""
    inside = files_below(folder)
    found = [file for file in inside if file.suffix.lower() in _SUFFIXES]
    if len(found) < len(inside):
        notes.setdefault(_LEFT_OUT, []).extend(map(str, sorted(set(inside) - set(found))))
    return list(map(str, found))


def _pixels(file: str, shape: tuple[int, int, int], resize: bool, dark_ground: bool,
            notes: dict[str, list[str]]) -> np.ndarray:
    """uint8 [H, W, C] of one file; `notes` takes what was done to it."""
    height, width, channels = shape
    image = _open(file)
    if (image.height, image.width) != (height, width) and not resize:
        raise UserError(f"{file} is {image.height}x{image.width} pixels, the network takes {height}x{width}; scale it "
                        "to that size, or give --resize (resize=True).")
    image = _opaque(_eight_bits(image), file, notes)
    image = image.convert("L" if channels == 1 else "RGB")
    if dark_ground and np.mean(_border(image) >= _BRIGHT) >= _BORDER_SHARE:
        image = ImageOps.invert(image)
        notes.setdefault(_INVERTED, []).append(file)
    if (image.height, image.width) != (height, width):
        if image.width * height != image.height * width:
            notes.setdefault(_PADDED, []).append(file)
        image = _scaled(image, height, width)
    return np.asarray(image).reshape(shape)


def _open(file: str) -> Image.Image:
    """The decoded picture, upright."""
    with _opened(file) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def _header(file: str) -> Header:
    with _opened(file) as image:
        # A PNG without "exif" in front of its pixels would be decoded in search of it
        orientation = image.getexif().get(ExifTags.Base.Orientation) if "exif" in image.info else None
        height, width = (image.width, image.height) if orientation in _TURNED else (image.height, image.width)
        return Header(height, width, image.mode in _GREY or image.mode.startswith("I"))


@contextlib.contextmanager
def _large_pictures_refused() -> Iterator[None]:
    """Makes an error of Pillow's warning of decompression bombs; once around all threads, as it is set for all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Image.Image]:
    """The picture, not decoded yet; what goes wrong within is said in one sentence."""
    try:
        with open(file, "rb") as content:
            start = content.read(12)
        if not start:
            raise UserError(f"{file} is empty (0 bytes); leave it out.")
        if start[4:8] == b"ftyp":
            raise UserError(f"{file} is a HEIC or AVIF picture, or a film, as phones make them; save it as PNG or "
                            "JPEG.")
        with Image.open(file, formats=_FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a JPEG with a preview or a second view behind it
                raise UserError(f"{file} is a film of {frames} pictures; give one picture per file.")
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is too large ({first_line(error)}); scale it down.") from error
    except Exception as error:  # Pillow raises whatever its parsers meet in a damaged file
        raise UserError(f"{file} is not a readable PNG or JPEG ({first_line(error)}); leave it out.") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey as 8, which `convert` would cut off at 255."""
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.int64)
    scaled = Image.fromarray(np.round(np.clip(grey, 0, 65535) / 257).astype(np.uint8))
    if "transparency" in image.info:
        scaled.putalpha(Image.fromarray(np.where(grey == image.info["transparency"], 0, 255).astype(np.uint8)))
    return scaled


def _opaque(image: Image.Image, file: str, notes: dict[str, list[str]]) -> Image.Image:
    """The picture as grey or RGB, on the ground that its ink is seen on where it has transparent parts."""
    if not image.has_transparency_data:
        return image if image.mode in ("1", "L") else image.convert("RGB")
    image = image.convert("RGBA")
    opacity = np.asarray(image.getchannel("A"), np.float64)
    if not opacity.any():
        raise UserError(f"{file} is transparent everywhere, so there is nothing to see; leave it out.")
    if opacity.min() == 255:
        return image.convert("RGB")
    bright = np.average(np.asarray(image.convert("RGB").convert("L")), weights=opacity) >= _BRIGHT
    notes.setdefault(_ON_BLACK if bright else _ON_WHITE, []).append(file)
    ground = Image.new("RGBA", image.size, "black" if bright else "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def _border(image: Image.Image) -> np.ndarray:
    """The outermost pixels [P, C]."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    return np.concatenate(edges)


def _scaled(image: Image.Image, height: int, width: int) -> Image.Image:
    """The whole picture, as large as it fits, in the middle of height x width pixels of its border's colour."""
    scale = min(height / image.height, width / image.width)
    size = [min(most, max(1, round(side * scale))) for side, most in ((image.width, width), (image.height, height))]
    colour = tuple(np.median(_border(image), axis=0).round().astype(int).tolist())
    out = Image.new(image.mode, (width, height), colour if len(colour) > 1 else colour[0])
    out.paste(image.resize((size[0], size[1]), Image.Resampling.BILINEAR),
              ((width - size[0]) // 2, (height - size[1]) // 2))
    return out
