"""Picture files as phones, cameras and drawing programs write them: read rightly, or one sentence that names the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from tfspike import datasets
from tfspike.datasets.image_files import load_images
from tfspike.errors import UserError

SHAPE = (12, 12, 1)
QUICKLY = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def digit() -> np.ndarray:
    """A one with a foot, not symmetric in any direction: opacity uint8 [12, 12]."""
    ink = np.zeros((12, 12), np.uint8)
    ink[2:10, 6] = ink[9, 4:9] = 255
    ink[3, 5] = 128
    return ink


def one(path: Path, channels: int = 1, **kwargs: Any) -> np.ndarray:
    """The pixels of a file that nothing has to be said of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_images([path], (12, 12, channels), **kwargs)[0][0]


def told(path: Path, note: str, **kwargs: Any) -> np.ndarray:
    """The pixels of a file that one thing is said of."""
    with pytest.warns(UserWarning, match=note) as caught:
        images, _ = load_images([path], SHAPE, **kwargs)
    assert str(path) in str(caught[0].message)
    return images[0, ..., 0]


def refused(path: Path, message: str, **kwargs: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_images([path], SHAPE, **kwargs)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---- transparency and ground ---------------------------------------------------------------------------------------


def transparent(mode: str, ink: int) -> Image.Image:
    """The digit in ink of one brightness, transparent elsewhere; under the transparency the colour is the same."""
    grey = Image.fromarray(np.full((12, 12), ink, np.uint8))
    image = Image.merge("LA", (grey, Image.fromarray(digit())))
    if mode == "PA":
        palette = Image.fromarray(np.where(digit() > 0, 1, 0).astype(np.uint8), "P")
        palette.putpalette([ink] * 6)
        palette.info["transparency"] = 0
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_white_and_black_ink_on_a_transparent_ground_stay_visible(tmp_path: Path, mode: str) -> None:
    wanted = digit() if mode != "PA" else np.where(digit() > 0, 255, 0)
    for ink, note, pixels in ((255, "bright ink, and was put on black", wanted), (0, "dark ink, and was put on white", 255 - wanted)):
        transparent(mode, ink).save(tmp_path / "a.png")
        np.testing.assert_array_equal(told(tmp_path / "a.png", note), pixels)


@pytest.mark.filterwarnings("ignore:.* has dark ink on a bright ground:UserWarning")  # said beside what is asked for
def test_for_sets_like_mnist_both_become_white_ink_on_black(tmp_path: Path) -> None:
    for ink in (0, 255):
        transparent("RGBA", ink).save(tmp_path / f"{ink}.png")
        np.testing.assert_array_equal(told(tmp_path / f"{ink}.png", "was put on", dark_ground=True), digit())


def test_black_ink_on_paper_is_inverted_for_sets_like_mnist_and_for_no_others(tmp_path: Path) -> None:
    Image.fromarray(255 - digit()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(told(tmp_path / "a.png", "was inverted", dark_ground=True), digit())
    np.testing.assert_array_equal(one(tmp_path / "a.png")[..., 0], 255 - digit())
    Image.fromarray(digit()).save(tmp_path / "b.png")
    np.testing.assert_array_equal(one(tmp_path / "b.png", dark_ground=True)[..., 0], digit())


def test_the_ground_of_a_set_follows_from_its_normalisation() -> None:
    subset = datasets.load("mnist_subset", "train")
    assert datasets.describe(subset).dark_ground
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3))
    assert not datasets.describe(datasets.from_arrays(images, [0, 1, 0, 1])).dark_ground


def test_no_digit_of_the_embedded_set_would_be_inverted(tmp_path: Path) -> None:
    for i, image in enumerate(datasets.load("mnist_subset", "test").images[:50]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i:02d}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, _ = load_images([tmp_path], (28, 28, 1), dark_ground=True)
    np.testing.assert_array_equal(images, datasets.load("mnist_subset", "test").images[:50])


def test_an_opaque_alpha_channel_changes_nothing_and_an_empty_picture_is_refused(tmp_path: Path) -> None:
    image = Image.fromarray(digit())
    image.putalpha(255)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(one(tmp_path / "a.png")[..., 0], digit())
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "transparent everywhere")


def test_a_note_is_one_for_all_files(tmp_path: Path) -> None:
    for name in "abc":
        transparent("RGBA", 255).save(tmp_path / f"{name}.png")
    with pytest.warns(UserWarning, match="a.png .and 2 more. has transparent") as caught:
        load_images([tmp_path], SHAPE)
    assert len(caught) == 1


# ---- kinds of files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """A camera writes the sensor's rows and how they lie; the inverse turn of the upright picture is what it writes."""
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}
    image = Image.fromarray(digit())
    written = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    written.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(one(tmp_path / "a.png")[..., 0], digit())


def test_16_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    deep = (np.arange(144, dtype=np.uint16).reshape(12, 12) * 455)
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_array_equal(one(tmp_path / "a.png")[..., 0], np.round(deep / 257))
    Image.fromarray(np.where(deep == 0, 0, 65535).astype(np.uint16)).save(tmp_path / "b.png", transparency=65535)
    assert told(tmp_path / "b.png", "dark ink")[0, :2].tolist() == [0, 255]


def test_palettes_single_bits_and_grey_become_grey_or_colour(tmp_path: Path) -> None:
    bits = Image.fromarray(np.where(digit() > 200, 255, 0).astype(np.uint8))
    bits.convert("1").save(tmp_path / "bits.png")
    bits.convert("P").save(tmp_path / "palette.png")
    bits.convert("RGB").save(tmp_path / "rgb.bmp")
    bits.save(tmp_path / "still.gif")
    bits.save(tmp_path / "still.webp", lossless=True)
    for channels in (1, 3):
        for name in ("bits.png", "palette.png", "rgb.bmp", "still.gif", "still.webp"):
            got = one(tmp_path / name, channels)
            np.testing.assert_array_equal(got, np.repeat(np.asarray(bits)[..., None], channels, axis=2), name)


@pytest.mark.parametrize("mode, options", [("L", {}), ("RGB", {"progressive": True}), ("CMYK", {}), ("RGB", {"subsampling": 2})])
def test_every_jpeg_is_the_picture_that_was_saved(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    smooth = np.add.outer(np.arange(12), np.arange(12)).astype(np.uint8) * 10
    Image.fromarray(smooth).convert("RGB").convert(mode).save(tmp_path / "a.jpg", quality=95, **options)
    assert np.abs(one(tmp_path / "a.jpg")[..., 0].astype(int) - smooth).max() <= 8


def test_of_a_jpeg_with_a_second_picture_behind_it_the_first_is_read(tmp_path: Path) -> None:
    """Phones append previews and depth maps (Multi-Picture Format)."""
    first, second = (Image.new("RGB", (12, 12), (grey,) * 3) for grey in (200, 10))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert (np.abs(one(tmp_path / "a.jpg").astype(int) - 200) <= 2).all()


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_films_are_refused(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(np.roll(digit(), shift, axis=1)) for shift in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    refused(tmp_path / name, "film of 3 pictures")


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.PNG", "digit"):
        Image.fromarray(digit()).save(tmp_path / name, "PNG")
        np.testing.assert_array_equal(one(tmp_path / name)[..., 0], digit())


def test_what_no_picture_is_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    refused(tmp_path / "a.heic", "HEIC.*save it as PNG or JPEG")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "is empty")
    (tmp_path / "text.png").write_text("no picture at all")
    refused(tmp_path / "text.png", "not a readable PNG or JPEG")
    refused(tmp_path / "none.png", "no PNG or JPEG image at .*does not exist")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "no PNG or JPEG image at")
    Image.fromarray(digit()).save(tmp_path / "large.png")
    for limit in (100, 50):  # Pillow warns from its limit on, and refuses from twice of it on
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(tmp_path / "large.png", "too large.*scale it down")


def test_folders_are_read_without_hidden_files_and_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.jpeg"):
        Image.fromarray(digit()).save(tmp_path / name)
    (tmp_path / "._b.png").write_bytes(b"what a Mac leaves in archives")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.warns(UserWarning, match="photo.heic is in the folder.*left out"):
        _, files = load_images(tmp_path, SHAPE)  # type: ignore[arg-type]
    assert files == [str(tmp_path / "b.png"), str(tmp_path / "deep" / "a.jpeg")]


@QUICKLY
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]), st.data())
def test_a_damaged_file_is_read_or_ends_in_one_sentence(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    transparent("RGBA" if kind in ("PNG", "WEBP") else "LA", 255).convert("RGBA" if kind in ("PNG", "WEBP") else "L").save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[:data.draw(st.integers(0, len(content)))]
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            images, _ = load_images([tmp_path / "a.png"], SHAPE)
        except UserError as error:
            assert str(tmp_path / "a.png") in str(error) and "\n" not in str(error)
        else:
            assert images.shape == (1, 12, 12, 1)


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_a_scaled_picture_keeps_its_proportions(tmp_path: Path) -> None:
    tall = np.full((48, 24), 10, np.uint8)
    tall[8:40, 4:20] = 250  # in the middle: 32x16 of 48x24
    Image.fromarray(tall).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "48x24 pixels.*12x12.*--resize")
    got = told(tmp_path / "a.png", "other proportions", resize=True)
    assert (got[:, :3] == 10).all() and (got[:, 9:] == 10).all() and (got[0] == 10).all()
    assert got[6, 5:7].tolist() == [250, 250]
    rows, columns = np.nonzero(got > 130)
    assert np.ptp(rows) + 1 == 8 and np.ptp(columns) + 1 == 4  # twice as tall as wide, as before


@pytest.mark.parametrize("size", [(24, 24), (5, 5), (1, 1), (700, 2), (1, 400)])
def test_every_size_is_scaled(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.full(size, 77, np.uint8)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (load_images([tmp_path / "a.png"], SHAPE, resize=True)[0] == 77).all()
        assert load_images([tmp_path / "a.png"], (6, 9, 3), resize=True)[0].shape == (1, 6, 9, 3)
