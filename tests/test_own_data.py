"""Data of the user's own, pictures in folders and arrays in a file: read rightly, or one sentence that says what to do."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import runs
from tfspike import datasets
from tfspike.config import Config, default_workdir, digest, flags, resolve
from tfspike.datasets import image_files, tfds_source
from tfspike.datasets.sampling import held_out
from tfspike.errors import UserError

LABELS = np.arange(20) % 2


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, classes: Any = ("cat", "dog"), count: int = 5, shape: tuple[int, ...] = (8, 8), seed: int = 0) -> Path:
    """A folder of pictures, a folder per class, of noise that differs from picture to picture; returns the folder."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pixels(count, *shape, seed=seed + number)):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


def parts(folder: Path, **more: Any) -> tuple[datasets.Arrays, datasets.Arrays]:
    """The training and the test part, of which nothing has to be said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return tuple(datasets.load("folder", part, str(folder), **more) for part in ("train", "test"))  # type: ignore[return-value]


def refused(name: str, place: Any, message: str, split: str = "train", **more: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(name, split, str(place), **more)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_per_class_is_read_class_by_class_with_its_names(tmp_path: Path) -> None:
    write(tmp_path / "train", ("zebra", "ant farm"), seed=3)
    write(tmp_path / "test", ("zebra",), 2, seed=9)
    train, test = parts(tmp_path)
    assert train.class_names == test.class_names == ("ant farm", "zebra")
    np.testing.assert_array_equal(train.images[..., 0], [*pixels(5, 8, 8, seed=4), *pixels(5, 8, 8, seed=3)])
    np.testing.assert_array_equal(test.images[..., 0], pixels(2, 8, 8, seed=9))
    assert train.labels.tolist() == [0] * 5 + [1] * 5 and test.labels.tolist() == [1, 1]
    assert all((part.num_train, part.num_test) == (10, 2) for part in (train, test))
    info = datasets.describe(train)
    assert info.class_names == train.class_names and not info.augment and info.name == "folder"


@pytest.mark.parametrize("inside", ["", "train"])
def test_without_a_test_folder_a_fifth_of_each_class_is_held_out(tmp_path: Path, inside: str) -> None:
    write(tmp_path / inside, ("a", "b", "c"), 10)
    train, test = parts(tmp_path)
    assert np.bincount(train.labels).tolist() == [8] * 3 and np.bincount(test.labels).tolist() == [2] * 3
    both = np.concatenate([train.images, test.images]).reshape(30, -1)
    assert len(np.unique(both, axis=0)) == 30
    np.testing.assert_array_equal(parts(tmp_path)[1].images, test.images)


def test_what_is_held_out_is_the_same_in_every_release() -> None:
    assert np.flatnonzero(held_out(np.arange(30) % 3)).tolist() == [3, 15, 20, 25, 26, 28]
    counts = [np.bincount(held_out(np.zeros(count, int)), minlength=2)[1] for count in (1, 2, 3, 7, 8, 100)]
    assert counts == [0, 1, 1, 1, 2, 20]


def test_classes_may_be_called_as_the_parts_are(tmp_path: Path) -> None:
    train, test = parts(write(tmp_path / "pictures", ("bus", "train", "test")))
    assert train.class_names == test.class_names == ("bus", "test", "train")
    (tmp_path / "pictures" / "train" / "cat").mkdir()  # now it has classes
    refused("folder", tmp_path / "pictures", "train has 1 class, 'cat'")


@pytest.mark.parametrize("name", ["test", "Validation", "valid", "val"])
def test_the_test_folder_may_have_another_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / "Train")
    write(tmp_path / name, count=3)
    assert [len(part) for part in parts(tmp_path)] == [10, 6]


def test_a_validation_folder_beside_a_test_folder_is_said_not_to_be_read(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 4), ("test", 3)):
        write(tmp_path / part, count=count)
    with pytest.warns(UserWarning, match="val is not read.*--val_fraction"):
        assert datasets.load("folder", "train", str(tmp_path)).num_test == 6


def test_grey_pictures_make_a_grey_set_and_one_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test", shape=(8, 8, 3))
    train, test = parts(tmp_path)
    assert train.images.shape == (10, 8, 8, 1) and test.images.shape == (10, 8, 8, 1)
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "train" / "cat" / "colour.png")
    train, test = parts(tmp_path)
    assert train.images.shape == (11, 8, 8, 3)
    np.testing.assert_array_equal(train.images[0], np.repeat(pixels(5, 8, 8)[0][..., None], 3, -1))
    np.testing.assert_array_equal(test.images[:5], pixels(5, 8, 8, 3))


def test_files_of_every_depth_are_read_as_for_prediction(tmp_path: Path) -> None:
    folder = write(tmp_path, count=2)
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(folder / "cat" / "16bits.png")
    photo = Image.fromarray(pixels(6, 8, 3))
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by 90 degrees: 8x6 upright, which is not the size of the others
    photo.save(folder / "dog" / "photo.jpg", exif=exif)
    refused("folder", folder, r"8x8 \(.*cat.0.png\) and 8x6 \(.*photo.jpg\)")
    with pytest.warns(UserWarning, match="photo.jpg has other proportions"):
        got = [datasets.load("folder", part, str(folder), image_size=(8, 8)) for part in ("train", "test")]
    with pytest.warns(UserWarning, match="photo.jpg has other proportions"):
        wanted, _ = image_files.load_images(folder, (8, 8, 3), resize=True)  # type: ignore[arg-type]
    order = np.argsort([image.tobytes() for image in wanted])
    both = np.concatenate([part.images for part in got])
    np.testing.assert_array_equal(both[np.argsort([image.tobytes() for image in both])], wanted[order])


def test_transparent_pictures_are_put_on_a_ground_and_other_files_left_out(tmp_path: Path) -> None:
    image = Image.fromarray(np.dstack([np.full((8, 8, 3), 250, np.uint8), pixels(8, 8)]))
    train_folder = write(tmp_path / "train")
    write(tmp_path / "test")
    image.save(train_folder / "cat" / "clear.png")
    (train_folder / ".git").mkdir()
    (train_folder / "labels.csv").write_text("beside the classes")
    (train_folder / "dog" / ".hidden.png").write_bytes(b"what a Mac leaves in archives")
    (train_folder / "dog" / "notes.txt").write_text("among the pictures")
    with pytest.warns(UserWarning) as caught:
        train = datasets.load("folder", "train", str(tmp_path))
    assert len(train) == 11 and train.class_names == ("cat", "dog")
    assert {("notes.txt" in str(warning.message), "put on black" in str(warning.message)) for warning in caught} == \
        {(True, False), (False, True)}


def test_large_pictures_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, count=2, shape=(130, 130))
    with pytest.warns(UserWarning, match="130x130 pixels.*--image_size=64"):
        datasets.load("folder", "train", str(tmp_path))
    assert parts(tmp_path, image_size=(64, 64))[0].images.shape == (2, 64, 64, 1)


def test_a_folder_beyond_the_memory_limit_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_source, "MAX_BYTES", 8 * 64 - 1)
    monkeypatch.setattr(image_files, "load_images", None)
    refused("folder", write(tmp_path), "the train part of .* limit .*--image_size")


def _broken(folder: Path) -> None:
    (write(folder) / "dog" / "9.png").write_bytes(b"not a picture")


def _cut(folder: Path) -> None:
    file = write(folder) / "dog" / "0.png"
    file.write_bytes(file.read_bytes()[:70])


def _broken_test(folder: Path) -> None:
    write(folder / "train")
    (write(folder / "test") / "dog" / "9.png").write_bytes(b"")


@pytest.mark.parametrize("make, message", [
    (lambda folder: None, "has no folders, and classification needs one per class; sort the pictures into .*/CLASS"),
    (lambda folder: write(folder, ("flowers",)), "1 class, 'flowers'.* give --data_dir=.*flowers"),
    (lambda folder: (write(folder) / "empty").mkdir(), "empty has no PNG or JPEG pictures; put some in, or remove it"),
    (lambda folder: write(folder, count=1), "no class of .* has two pictures"),
    (_broken, r"dog/9.png is not a readable PNG or JPEG"), (_cut, "dog/0.png is not a readable PNG or JPEG"),
    (_broken_test, r"test/dog/9.png is empty \(0 bytes\)"),
    (lambda folder: write(folder / "test"), "has a folder 'test' and none called 'train'; put the pictures to train with"),
    (lambda folder: (write(folder / "train"), (folder / "test").mkdir()), "test has no pictures; put some in, or remove it"),
    (lambda folder: (write(folder / "train"), write(folder / "test", ("cat", "bird"))), r"class 'bird', which is none of .*\(cat, dog\)"),
    (lambda folder: (write(folder / "train"), write(folder / "test", shape=(9, 8))), "different sizes, 8x8 .* and 9x8 .*--image_size=32")])
def test_what_cannot_be_used_is_said_before_training(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    """What is wrong with the test part, too."""
    make(tmp_path)
    refused("folder", tmp_path, message)


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    refused("folder", tmp_path / "nowhere", "nowhere does not exist; give a folder with pictures in DIR/train/CLASS")
    np.savez(tmp_path / "a.npz", images=1)
    refused("folder", tmp_path / "a.npz", "give --dataset=npz")
    refused("npz", tmp_path, "pictures in folders are --dataset=folder")
    refused("npz", tmp_path / "b.npz", "b.npz does not exist")
    for name in ("folder", "npz"):
        with pytest.raises(UserError, match="give --data_dir="):
            datasets.load(name, "train")


# ---- for a network that is trained already ---------------------------------------------------------------------------


def test_a_trained_network_says_the_classes_and_the_shape(tmp_path: Path) -> None:
    info = datasets.describe(parts(write(tmp_path / "old"))[0])
    write(tmp_path / "new" / "test", ("dog",), 3, shape=(8, 8, 3))
    test = datasets.load("folder", "test", str(tmp_path / "new"), like=info)
    assert test.labels.tolist() == [1, 1, 1] and test.class_names == ("cat", "dog") and test.images.shape == (3, 8, 8, 1)
    refused("folder", tmp_path / "new", "none called 'train'", like=info)
    write(tmp_path / "large" / "test", shape=(9, 9))
    refused("folder", tmp_path / "large", r"9x9 \(.*0.png\), and the network takes 8x8", "test", like=info)
    write(tmp_path / "other" / "test", ("bird",))
    refused("folder", tmp_path / "other", "'bird', which is none of those trained on", "test", like=info)
    (tmp_path / "none").mkdir()
    refused("folder", tmp_path / "none", "has no folders", "test", like=info)


def test_pictures_that_are_added_make_no_test_pictures_of_training_pictures(tmp_path: Path) -> None:
    train, test = parts(write(tmp_path))
    info = datasets.describe(train)
    np.testing.assert_array_equal(datasets.load("folder", "test", str(tmp_path), like=info).images, test.images)
    write(tmp_path, count=6)
    refused("folder", tmp_path, "has 12 pictures, and when the network was trained there were 10.*DIR/test/CLASS", "test", like=info)


def test_arrays_for_a_trained_network(tmp_path: Path) -> None:
    images, names = pixels(20, 8, 8), np.array(["cat", "dog"])
    file = npz(tmp_path, images=images, labels=names[LABELS])
    info = datasets.describe(datasets.load("npz", "train", file))
    held = datasets.load("npz", "test", file)
    np.testing.assert_array_equal(datasets.load("npz", "test", file, like=info).images, held.images)
    only = npz(tmp_path, x_test=images[:3], y_test=names[[1, 1, 1]])
    assert datasets.load("npz", "test", only, like=info).labels.tolist() == [1, 1, 1]
    refused("npz", only, "test images alone", like=info)
    refused("npz", npz(tmp_path, images=images[:10], labels=names[LABELS[:10]]), "has 10 images, and .* there were 20", "test", like=info)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "own.npz", **arrays)
    return str(folder / "own.npz")


def test_arrays_as_keras_has_them_are_read_as_they_are(tmp_path: Path) -> None:
    x, more = pixels(20, 8, 6, 3), pixels(4, 8, 6, 3, seed=1)
    file = npz(tmp_path, x_train=x, y_train=LABELS[:, None], x_test=more, y_test=LABELS[:4, None])
    train, test = (datasets.load("npz", split, file) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, x)
    np.testing.assert_array_equal(test.images, more)
    assert train.labels.tolist() == LABELS.tolist() and train.class_names == ("0", "1") and (train.num_train, train.num_test) == (20, 4)


@pytest.mark.parametrize("labels, names", [
    (LABELS, ("0", "1")), (LABELS.astype(np.int8) * 7 - 3, ("-3", "4")), (LABELS.astype(np.uint64) + 9, ("9", "10")),
    (np.array(["dog", "cat"])[LABELS], ("cat", "dog")), (np.array(["käse", "brot"])[LABELS], ("brot", "käse")),
    (np.char.encode(np.array(["käse", "brot"])[LABELS], "utf-8"), ("brot", "käse"))])
def test_labels_of_every_kind_become_classes(tmp_path: Path, labels: np.ndarray, names: tuple[str, ...]) -> None:
    file = npz(tmp_path, images=pixels(20, 8, 8), labels=labels)
    train, test = (datasets.load("npz", split, file) for split in ("train", "test"))
    assert train.class_names == names and train.images.shape == (16, 8, 8, 1) and test.images.shape == (4, 8, 8, 1)
    text = np.array([value.decode() if isinstance(value, bytes) else str(value) for value in labels])
    tested = held_out(np.array([names.index(label) for label in text]))
    assert [names[label] for label in train.labels] == text[~tested].tolist()
    np.testing.assert_array_equal(test.images[..., 0], pixels(20, 8, 8)[tested])


@pytest.mark.parametrize("made", [lambda x: x, lambda x: x.astype(np.int64), lambda x: x.astype(np.uint16), lambda x: x.astype(np.float64),
                                  lambda x: x / 255, lambda x: (x / 255).astype(np.float32), lambda x: (x / 255).astype(np.float16),
                                  lambda x: x.astype(np.float32) + 0.3])
def test_pixels_of_every_type_and_scale_are_the_same(tmp_path: Path, made: Callable[[np.ndarray], np.ndarray]) -> None:
    x = pixels(20, 8, 8)
    x[0, 0, :2] = 0, 254  # what is added above stays below 255
    x = np.minimum(x, 254)
    wanted = datasets.load("npz", "train", npz(tmp_path, images=x, labels=LABELS)).images
    got = datasets.load("npz", "train", npz(tmp_path, images=made(x), labels=LABELS)).images
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, wanted)


X = pixels(20, 8, 8, 3)


@pytest.mark.parametrize("arrays, message", [
    ({"data": X, "target": LABELS}, r"lacks the fields x_train, y_train, it has data, target; save it with numpy.savez"),
    ({"x_train": X, "y_train": LABELS, "x_test": X}, "lacks the fields y_test"), ({"x_test": X, "y_test": LABELS}, "lacks the fields x_train"),
    ({"images": np.array([X, "a"], object), "labels": LABELS}, "Object arrays cannot be loaded.*numbers and text only"),
    ({"images": X, "labels": np.array([0, "a"] * 10, object)}, "Object arrays cannot be loaded"),
    ({"images": X.reshape(20, -1), "labels": LABELS}, r"shape \[N, H, W\].*reshape it"), ({"images": X[:0], "labels": LABELS[:0]}, "no empty axis"),
    ({"images": pixels(20, 3, 8, 8), "labels": LABELS}, r"channels in front of the pixels; save images.transpose\(0, 2, 3, 1\)"),
    ({"images": X > 9, "labels": LABELS}, "received bool"), ({"images": X.astype(str), "labels": LABELS}, "received <U"),
    ({"images": X / 127.5 - 1, "labels": LABELS}, "run from -1 to 1; legal are .* before they were normalised"),
    ({"images": X / 200, "labels": LABELS}, "run from 0 to 1.275"), ({"images": X // 128, "labels": LABELS}, "run from 0 to 1; "),
    ({"images": X.astype(np.uint16) * 257, "labels": LABELS}, "run from 0 to 65535"),
    ({"images": np.where(X > 99, np.nan, X), "labels": LABELS}, "NaN or infinite"),
    ({"images": X, "labels": np.eye(2)[LABELS]}, r"one-hot rows, save labels.argmax\(axis=1\)"), ({"images": X, "labels": LABELS + 0.5}, "float64"),
    ({"images": X, "labels": LABELS[:5]}, "20 images in `images` and 5 labels in `labels`"), ({"images": X, "labels": LABELS * 0}, "1 class, 0"),
    ({"images": X, "labels": np.arange(20)}, "20 different ones, fewer than two images of each"),
    ({"x_train": X, "y_train": LABELS, "x_test": X, "y_test": LABELS + 1}, r"label 2, which is none of those trained on \(0, 1\)"),
    ({"x_train": X / 255, "y_train": LABELS, "x_test": X / 1.0, "y_test": LABELS}, "different scales, up to 1 .* up to 255"),
    ({"x_train": X / 255, "y_train": LABELS, "x_test": X, "y_test": LABELS}, "different scales"),
    ({"x_train": X, "y_train": LABELS, "x_test": X[:, :4], "y_test": LABELS}, r"\(8, 8, 3\) in x_train and \(4, 8, 3\) in x_test")])
def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    refused("npz", npz(tmp_path, **arrays), message)


def test_a_file_that_is_no_archive_is_refused_without_a_word_of_pickles(tmp_path: Path) -> None:
    whole = Path(npz(tmp_path, images=X, labels=LABELS)).read_bytes()
    np.save(tmp_path / "array.npy", X)
    for content in (b"", b"garbage", whole[:-30], (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "bad.npz").write_bytes(content)
        refused("npz", tmp_path / "bad.npz", "bad.npz is no .npz file, or a damaged one; save it with (?!.*pickle)")
    (tmp_path / "bad.npz").write_bytes(whole.replace(whole[200:230], bytes(30)))
    refused("npz", tmp_path / "bad.npz", "bad.npz cannot be read")


# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_size_of_pictures_is_a_setting_of_folders() -> None:
    given = [f"--dataset=folder --data_dir=x --image_size={size}".split() for size in ("32", "32,32", "32,48", "none")]
    assert [flags.parse(words)[0].image_size for words in given] == [(32, 32), (32, 32), (32, 48), ()]
    for settings, message in (({"dataset": "mnist", "image_size": (8,)}, "--image_size=8 scales the pictures of --dataset=folder"),
                              ({"dataset": "folder", "image_size": (8, 8, 3)}, "height and width, or one number for both"),
                              ({"dataset": "folder", "image_size": (0,)}, "whole numbers from 1 to 4096")):
        with pytest.raises(UserError, match=message):
            Config(**settings)
    before = resolve({"dataset": "svhn"})
    assert digest(before) == digest(dataclasses.replace(before, image_size=()))


def test_two_folders_are_two_runs() -> None:
    made = [default_workdir(resolve({"dataset": name, "data_dir": place})) for name, place in
            (("folder", "a/My Flowers"), ("folder", "a/cats/"), ("npz", "cats.npz"), ("folder", None))]
    assert [name.rpartition("-")[0] for name in made] == ["runs/lenet-folder-my-flowers-rate", "runs/lenet-folder-cats-rate",
                                                          "runs/lenet-npz-cats-rate", "runs/lenet-folder-rate"]


@pytest.mark.parametrize("name", ["folder", "npz"])
def test_own_data_get_the_recipe_that_learns_everywhere(name: str) -> None:
    made = resolve({"dataset": name})
    assert (made.norm, made.optimizer, made.timesteps) == ("tdbn", "adamw", 4)
    with pytest.raises(UserError, match=f"--encoder=none takes spike trains, but {name} holds images"):
        resolve({"dataset": name, "encoder": "none"})


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_on_a_folder_is_tested_from_its_workdir_alone_and_refuses_other_pictures(tmp_path: Path) -> None:
    from tfspike import evaluation, training
    from tfspike.evaluation.options import EvalOptions

    folder = write(tmp_path / "pets", count=10, shape=(10, 12))
    made = runs.tiny(tmp_path / "run", dataset="folder", data_dir=str(folder), image_size=(8, 8), epochs=1, lr_milestones=(),
                     val_fraction=0.2, lr_schedule="milestones", warmup_epochs=0)
    with pytest.warns(UserWarning, match="other proportions"):
        assert training.run(made, say=lambda line: None) == 0
        record = evaluation.evaluate_run(EvalOptions(workdir=str(tmp_path / "run")), lambda line: None)
    assert record["records"] == 4 and list(record["per_class"]) == ["cat", "dog"] and record["dataset"] == "folder"
    (folder / "cat" / "0.png").rename(folder / "swap.png")
    (folder / "dog" / "0.png").rename(folder / "cat" / "0.png")
    (folder / "swap.png").rename(folder / "dog" / "0.png")  # as many of each class, and other pictures in them
    with pytest.warns(UserWarning, match="other proportions"), pytest.raises(UserError, match="are not those .*contents_crc32"):
        training.run(dataclasses.replace(made, epochs=2), say=lambda line: None)


def test_an_ann_on_arrays_is_converted(tmp_path: Path) -> None:
    from tfspike import training
    from tfspike.conversion import command
    from tfspike.conversion.options import ConversionOptions

    file = npz(tmp_path, images=pixels(40, 8, 8), labels=np.array(["no", "yes"] * 20))
    made = resolve({"dataset": "npz", "data_dir": file, "neuron": "relu", "norm": "none", "hidden": 0, "epochs": 1, "steps_per_epoch": 2,
                    "batch_size": 8, "export": (), "tensorboard": False, "workdir": str(tmp_path / "ann")})
    assert training.run(made, say=lambda line: None) == 0
    record = command.run(ConversionOptions(run=str(tmp_path / "ann"), timesteps=3), lambda line: None)
    assert record["records"] == 8 and record["dataset"] == "npz"
