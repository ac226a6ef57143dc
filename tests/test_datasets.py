"""Data sets: what is read, how it is split, normalised and batched, and the sentence every kind of bad data ends in.

Real data: set TFSPIKE_DATA_DIR to a TFDS folder with mnist and cifar10. Event data: test_events.py.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tfspike
from tfspike import datasets
from tfspike.datasets import catalogue, image_files, sampling, streams, tfds_source
from tfspike.errors import UserError

REAL = os.environ.get("TFSPIKE_DATA_DIR")
PINNED_VAL = [3, 4, 6, 12, 15]  # of 20 records, seed 0, "mnist"
needs_real = pytest.mark.skipif(not REAL, reason="TFSPIKE_DATA_DIR is not set to a TFDS folder with mnist and cifar10")


@pytest.fixture(scope="module")
def subset():
    return datasets.load("mnist_subset", "train")


@pytest.fixture(scope="module")
def colour():
    """Made-up colour set of 50 natural images in which no two records are equal."""
    rng = np.random.default_rng(1)
    return datasets.from_arrays(rng.integers(1, 256, (50, 12, 10, 3)), np.arange(50) % 5)


def write_tfds(folder, images, labels, features=None, name="tiny", supervised=None, splits=("train", "test")):
    """Write a real TFDS set of PNG records to `folder`, as another program would; features are image and label, in order."""
    import tensorflow_datasets as tfds

    size = images[0].shape if len({i.shape for i in images}) == 1 else (None, None, 3)
    classes = max(labels, default=1) + 1
    features = features or tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=size), "label": tfds.features.ClassLabel(num_classes=max(classes, 2))})
    place = pathlib.Path(folder) / name / "1.0.0"
    place.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(name=name, version=tfds.core.Version("1.0.0"), data_dir=str(place),
                                         module_name="tests")
    info = tfds.core.DatasetInfo(builder=identity, features=features, supervised_keys=supervised)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=10_000)
    writer.initialize_splits(list(splits), fail_if_exists=False)
    for split in splits:
        for image, label in zip(images, labels):
            writer.add_examples({split: [dict(zip(features, (image, label)))]})
    writer.close_all()
    return next(place.glob("*train*tfrecord*"), None)


def write_with_extra(folder, images, labels, more):
    """A TFDS set like SVHN: the images in train, `more` in extra; labels by position."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=images[0].shape),
                                           "label": tfds.features.ClassLabel(num_classes=5)})
    place = pathlib.Path(folder) / "tiny" / "1.0.0"
    place.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(name="tiny", version=tfds.core.Version("1.0.0"), data_dir=str(place),
                                         module_name="tests")
    writer = tfds.core.SequentialWriter(tfds.core.DatasetInfo(builder=identity, features=features), max_examples_per_shard=4)
    writer.initialize_splits(["train", "test", "extra"], fail_if_exists=False)
    for split, part in (("train", images), ("test", images[:2]), ("extra", more)):
        for i, image in enumerate(part):
            writer.add_examples({split: [{"image": image, "label": labels[i]}]})
    writer.close_all()


def noise(count, shape=(8, 8, 3), seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def stream(arrays, **kwargs):
    kwargs = {"batch_size": 8, "seed": 3, "info": datasets.describe(arrays), "indices": None} | kwargs
    return streams.TrainStream(arrays.images, arrays.labels, **kwargs)


class TestEmbeddedSet:
    def test_is_class_balanced_and_small(self, subset):
        test = datasets.load("mnist_subset", "test")
        assert subset.images.shape == (6000, 28, 28, 1) and test.images.shape == (1000, 28, 28, 1)
        assert subset.images.dtype == np.uint8 and subset.labels.dtype == np.int32
        assert np.bincount(subset.labels).tolist() == [600] * 10
        assert np.bincount(test.labels).tolist() == [100] * 10
        folder = pathlib.Path(tfspike.__file__).parent / "data"
        assert sum(f.stat().st_size for f in folder.iterdir()) < 2e6
        assert "CC BY-SA 3.0" in (folder / "LICENSE").read_text()

    def test_digits_are_distinct_and_look_like_their_label(self, subset):
        assert len(np.unique(subset.images.reshape(6000, -1), axis=0)) == 6000
        test = datasets.load("mnist_subset", "test")
        means = np.stack([subset.images[subset.labels == c].mean(axis=0).ravel() for c in range(10)])
        distance = ((test.images.reshape(1000, 1, -1) - means) ** 2).sum(-1)
        assert (distance.argmin(1) == test.labels).mean() > 0.75  # nearest class mean reaches about 82 % on MNIST

    def test_needs_neither_tensorflow_nor_a_download(self):
        code = ("import sys; from tfspike import datasets as d;"
                "d.load('mnist_subset', 'test'); d.canonical_name('svhn');"
                "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)")
        subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[1])


class TestNormalisation:
    def test_digits_are_pixels_over_510(self, subset):
        info = datasets.describe(subset)
        x = info.normalise(subset.images[:50])
        assert x.dtype == np.float32 and x.max() == 0.5 and x.min() == 0
        np.testing.assert_allclose(x, subset.images[:50] / 510, rtol=1e-6)
        assert not info.augment

    def test_cifar10_uses_the_constants_of_the_paper(self, colour):
        info = datasets.describe(dataclasses.replace(colour, name="cifar10"))
        mean, std = np.array([.4914, .4822, .4465]), np.array([.557, .549, .5534])
        np.testing.assert_allclose(info.normalise(colour.images), (colour.images / 255 - mean) / std, atol=1e-6)
        assert info.augment

    def test_other_sets_use_the_mean_of_the_training_part_only(self, colour):
        part = np.arange(5, 30)
        info = datasets.describe(colour, part)
        mean = colour.images[part].astype(float).mean((0, 1, 2)) / 255
        x = info.normalise(colour.images)
        np.testing.assert_allclose(x, (colour.images / 255 - mean) / np.maximum(mean, 1 - mean), atol=1e-6)
        assert np.abs(x).max() <= 1 + 1e-6 and not info.augment
        assert info.scale != datasets.describe(colour).scale

    def test_info_survives_json_bit_for_bit(self, colour):
        info = datasets.describe(colour)
        assert datasets.DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info

    @pytest.mark.parametrize("change", [{"scale": [1.0]}, {"offset": [float("nan")] * 3}, {"image_shape": 4},
                                        {"more": 1}, {"num_classes": 1}, {"augment": "yes"}, {"class_names": None}])
    def test_a_damaged_record_is_refused(self, colour, change):
        with pytest.raises(UserError, match="damaged"):
            datasets.DatasetInfo.from_dict({**datasets.describe(colour).to_dict(), **change})

    def test_images_of_another_shape_are_refused(self, colour, subset):
        with pytest.raises(UserError, match="12, 10, 3"):
            datasets.describe(colour).normalise(subset.images[:2])


class TestValidationSplit:
    def test_is_disjoint_complete_and_of_the_asked_size(self):
        train, val = streams.split_indices(6000, 0.1, 0, "mnist_subset")
        assert len(val) == 600 and sorted([*train, *val]) == list(range(6000))

    def test_depends_on_seed_and_name_and_nothing_else(self):
        train, val = streams.split_indices(1000, 0.2, 5, "a")
        for seed, name, same in ((5, "a", True), (6, "a", False), (5, "b", False)):
            assert np.array_equal(streams.split_indices(1000, 0.2, seed, name)[1], val) is same
        record = streams.split_record("a", 0.2, 5, train, val)
        assert record["num_val"] == 200 and record["val_crc32"] != record["train_crc32"]
        json.dumps(record)

    def test_is_the_same_in_every_release(self):
        assert streams.split_indices(20, 0.25, 0, "mnist")[1].tolist() == PINNED_VAL

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, 2, float("nan"), 0.001, 0.99])
    def test_an_illegal_fraction_or_an_empty_part_is_refused(self, fraction):
        with pytest.raises(UserError, match="val_fraction"):
            streams.split_indices(20, fraction, 0, "mnist")

    def test_zero_holds_nothing_out(self):
        train, val = streams.split_indices(20, 0, 0, "mnist")
        assert len(train) == 20 and len(val) == 0


class TestTrainStream:
    def test_an_epoch_shows_every_record_at_most_once_and_only_training_records(self, subset):
        train, val = streams.split_indices(len(subset), 0.1, 0, subset.name)
        s = stream(subset, indices=train, batch_size=64)
        assert s.steps_per_epoch == 5400 // 64
        epochs = [np.concatenate([s.records(e * s.steps_per_epoch + k) for k in range(s.steps_per_epoch)])
                  for e in (0, 1)]
        for seen in epochs:
            assert len(np.unique(seen)) == len(seen) == 84 * 64 and not np.isin(seen, val).any()
        assert not np.array_equal(*epochs)

    def test_images_keep_their_labels(self, subset):
        s = stream(subset)
        x, y = s.batch(7)
        np.testing.assert_array_equal(x, subset.images[s.records(7)].astype(np.float32) * np.float32(1 / 510))
        np.testing.assert_array_equal(y, subset.labels[s.records(7)])

    def test_resumes_bit_for_bit_at_any_step(self, colour):
        def first(start, count):
            ds = streams.train_stream(colour.images, colour.labels, None, 8, 3, datasets.describe(colour), start, True)
            return [(x.numpy(), y.numpy()) for x, y in ds.take(count)]

        whole = first(0, 15)  # 6 steps an epoch: crosses two boundaries
        for (x, y), (a, b) in zip(whole[4:], first(4, 11), strict=True):
            assert np.array_equal(x, a) and np.array_equal(y, b)
        assert not np.array_equal(whole[0][0], whole[1][0])

    def test_the_seed_decides_the_order_and_the_seed_and_the_step_the_augmentation(self, colour):
        one, same, other = (stream(colour, seed=seed).records(0).tolist() for seed in (3, 3, 4))
        assert one == same != other
        moved = [np.stack(sampling.shifts(True, *key, 8, 32, 32)).tolist() for key in ((3, 0), (3, 0), (4, 0), (3, 1))]
        assert moved[0] == moved[1] and moved[0] not in moved[2:]

    def test_shapes_are_static_for_the_network(self, colour):
        x, y = stream(colour).dataset().element_spec
        assert x.shape == (8, 12, 10, 3) and y.shape == (8,) and (x.dtype.name, y.dtype.name) == ("float32", "int32")

    def test_workers_see_exactly_the_slices_of_the_global_batch(self, colour):
        whole = stream(colour, augment=True).batch(9)
        parts = [stream(colour, augment=True, shard=(w, 4)).batch(9) for w in range(4)]
        for field in (0, 1):
            np.testing.assert_array_equal(whole[field], np.concatenate([p[field] for p in parts]))

    @pytest.mark.parametrize("name, mirrored", [("made_up", True), ("cifar10", True), ("svhn_cropped", False),
                                                ("mnist", False)])
    def test_augmentation_crops_over_dark_padding_and_mirrors_half_but_no_digits(self, name, mirrored):
        rng = np.random.default_rng(2)
        images = datasets.from_arrays(rng.integers(1, 256, (50, 32, 8, 3)), np.arange(50) % 5, name=name)
        s = stream(images, batch_size=50, augment=True)
        dark, places, flipped, total = s.info.normalise(np.zeros((1, 32, 8, 3), np.uint8))[0, 0, 0], set(), 0, 0
        shifted = 0  # away from the centre
        assert (dark < -0.5).all() if name != "mnist" else (dark == 0).all()
        for step in range(10):
            raw = np.pad(images.images[s.records(step)], ((0, 0), (4, 4), (1, 1), (0, 0)))
            for padded, x in zip(_norm(s.info, raw), s.batch(step)[0]):
                hits = [(t, le, f) for t in range(9) for le in range(3) for f in (0, 1)
                        if np.array_equal(padded[t:t + 32, le:le + 8][:, ::-1 if f else 1], x)]
                assert len(hits) == 1
                places.add(hits[0][:2])
                shifted += hits[0][:2] != (4, 1)
                flipped += hits[0][2]
                total += 1
        # 9 and 3 share a factor: shifts down and across that followed from one number would miss places
        assert len(places) == 27 and shifted / total > 0.9
        assert 0.42 < flipped / total < 0.58 if mirrored else flipped == 0

    def test_digits_are_never_augmented_unless_asked(self, subset):
        assert not stream(subset).augment

    @pytest.mark.parametrize("kwargs, message", [
        ({"batch_size": 51}, "larger than the 50"), ({"batch_size": 0}, "at least 1"), ({"shard": (0, 3)}, "divide"),
        ({"seed": -1}, "seed"), ({"indices": np.arange(0)}, "at least 1")])
    def test_an_impossible_batch_is_refused(self, colour, kwargs, message):
        with pytest.raises(UserError, match=message):
            stream(colour, **kwargs)

    def test_labels_out_of_range_are_refused(self, colour):
        with pytest.raises(UserError, match="0..4"):
            streams.TrainStream(colour.images, colour.labels + 1, None, 8, 0, datasets.describe(colour))

    def test_two_replicas_get_the_global_batch_in_order(self):
        code = """if 1:
            import numpy as np, tensorflow as tf
            from tfspike import datasets as d, streams
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
            a = d.load("mnist_subset", "test"); s = streams.TrainStream(a.images, a.labels, None, 8, 0, d.describe(a))
            strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
            it = iter(strategy.experimental_distribute_dataset(s.dataset(3)))
            for k in (3, 4):
                x, _ = next(it)
                got = np.concatenate([p.numpy() for p in strategy.experimental_local_results(x)])
                assert np.array_equal(got, s.batch(k)[0])
        """
        subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[1])

    @pytest.mark.parametrize("wrap", [pytest.param("ds", marks=pytest.mark.slow), "ds.prefetch(4)"])
    def test_a_process_that_ends_amid_its_batches_does_not_hang(self, wrap):
        code = f"""if 1:
            import numpy as np
            from tfspike import datasets as d, streams
            a = d.from_arrays(np.random.default_rng(0).integers(0, 256, (500, 96, 96, 3)), np.arange(500) % 5)
            ds = streams.train_stream(a.images, a.labels, None, 128, 0, d.describe(a), augment=True)
            batches = iter({wrap})
            next(batches)
            raise SystemExit(3)
        """
        done = subprocess.run([sys.executable, "-c", code], timeout=60, cwd=pathlib.Path(__file__).parents[1])
        assert done.returncode == 3


def test_no_thread_of_a_tuner_waits_at_the_end_of_a_stream(colour):
    """TensorFlow's tuner oversleeps when an iterator is given up, and the end of an epoch would wait for it."""
    info = datasets.describe(colour)
    train = streams.TrainStream(colour.images, colour.labels, None, 8, 0, info)
    for made in (train.dataset(), streams.EvalStream(colour.images, colour.labels, 8, info).dataset()):
        assert made.options().autotune.enabled is False


def _norm(info, raw):
    return raw.astype(np.float32) * np.float32(info.scale) + np.float32(info.offset)


class TestEvalStream:
    def test_shows_every_record_once_in_order(self, colour):
        info = datasets.describe(colour)
        batches = list(streams.eval_stream(colour.images, colour.labels, 16, info).as_numpy_iterator())
        assert [len(y) for _, y in batches] == [16, 16, 16, 2]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), info.normalise(colour.images))
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), colour.labels)

    def test_padding_has_weight_zero_and_full_batches_on_every_worker(self, colour):
        info, index = datasets.describe(colour), np.arange(3, 24)
        real = []
        for worker in (0, 1):
            ds = streams.eval_stream(colour.images, colour.labels, 16, info, index, pad=True, shard=(worker, 2))
            assert [tuple(s.shape) for s in ds.element_spec] == [(8, 12, 10, 3), (8,), (8,)]
            for x, y, weight in ds.as_numpy_iterator():
                real += y[weight == 1].tolist()
                assert set(weight) <= {0.0, 1.0} and len(x) == 8
        assert sorted(real) == sorted(colour.labels[index].tolist())


class TestOwnArrays:
    IMAGES, LABELS = np.full((4, 5, 5, 1), 200.0), np.array([0, 1, 0, 1])

    @pytest.mark.parametrize("images, labels, message", [
        (np.where(np.arange(4)[:, None, None, None] == 2, np.nan, IMAGES), LABELS, "NaN"),
        (IMAGES[..., 0], LABELS, "shape"), (IMAGES[:0], LABELS[:0], "empty"), (IMAGES.astype(str), LABELS, "floats"),
        (IMAGES * 2, LABELS, "0 to 255"), (IMAGES - 201, LABELS, "0 to 255"), (IMAGES / 255, LABELS, "0 to 255"),
        (IMAGES, LABELS[:3], "as many labels"), (IMAGES, LABELS - 1, "0..1"), (IMAGES, LABELS + 0.5, "whole numbers"),
        (IMAGES, LABELS * 0, "class"), (IMAGES, LABELS[:, None], "shape")])
    def test_bad_arrays_end_in_one_sentence(self, images, labels, message):
        with pytest.raises(UserError, match=message):
            datasets.from_arrays(images, labels, num_classes=2)

    @pytest.mark.parametrize("images, message", [
        (IMAGES > 0, "bool"), (np.full(IMAGES.shape, 1, np.uint8), "rescale"), (IMAGES.astype(np.int16) - 300, "received -100 to -100"),
        (IMAGES.astype(np.uint16) * 300, "received 60000 to 60000"), (IMAGES.astype(complex), "complex"), (IMAGES.astype(object), "object"),
        (np.where(IMAGES > 0, np.inf, 0), "NaN or infinite"), ([[1], [1, 2]], "images must be an array"), (None, "shape"),
        (np.zeros((4, 0, 5, 1)), "empty axis")])
    def test_pixels_that_are_none_are_refused_wherever_they_come_in(self, images, message):
        with pytest.raises(UserError, match=message):
            datasets.from_arrays(images, self.LABELS)
        if not isinstance(images, np.ndarray) or not images.size:
            return
        arrays = datasets.Arrays(images, self.LABELS, "custom", ("a", "b"), 4, 0)
        with pytest.raises(UserError, match=message):
            datasets.describe(arrays)
        with pytest.raises(UserError, match=message):
            streams.TrainStream(images, self.LABELS, None, 2, 0, self.info())
        if images.dtype != np.uint8:  # of bytes, a few may be almost black
            with pytest.raises(UserError, match=message):
                self.info().normalise(images)

    @staticmethod
    def info():
        return datasets.describe(datasets.from_arrays(np.random.default_rng(0).integers(0, 256, (4, 5, 5, 1)), [0, 1, 0, 1]))

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float32, np.float64])
    def test_every_type_of_number_gives_the_same_pixels(self, dtype):
        pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 2))
        wanted = datasets.from_arrays(pixels, self.LABELS)
        got = datasets.from_arrays(pixels.astype(dtype), self.LABELS)
        np.testing.assert_array_equal(got.images, pixels)
        info = datasets.describe(wanted)
        assert datasets.describe(got) == info
        for images in (got.images, pixels.astype(dtype)):
            np.testing.assert_array_equal(info.normalise(images), info.normalise(wanted.images))

    @pytest.mark.parametrize("labels, message", [
        (["cat", "dog", "cat", "dog"], "whole numbers"), (np.eye(2)[[0, 1, 0, 1]], r"one-hot.*argmax"), ([0.0, 1.0, np.nan, 1.0], "whole numbers"),
        ([True, False, True, False], "whole numbers"), ([0, -1, 0, 1], "0..1"), ([0, 1], "as many labels"), ([[0], [1, 2]], "labels must be an array"),
        ([0, 0, 0, 0], "at least 2 classes"), ([0, 1, 0, 10**9], "number them anew"), (0, "shape"), ([], "whole numbers"),
        (np.array([0, 1, 0, 2**63], np.uint64), "number them anew"), ([None] * 4, "whole numbers"),
        (np.array([0, 1, 0, 1], "timedelta64[s]"), "whole numbers")])
    def test_labels_that_are_none_are_refused(self, labels, message):
        with pytest.raises(UserError, match=message):
            datasets.from_arrays(np.random.default_rng(0).integers(0, 256, (4, 5, 5, 1)), labels)

    @pytest.mark.parametrize("count", [1, 0, -2, 2.0, True, "3"])
    def test_a_number_of_classes_that_is_none_is_refused(self, count):
        with pytest.raises(UserError, match="at least 2 classes"):
            datasets.from_arrays(np.random.default_rng(0).integers(0, 256, (4, 5, 5, 1)), self.LABELS, num_classes=count)

    def test_classes_without_a_record_are_said_once_and_only_of_training_data(self, recwarn):
        images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 1))
        datasets.from_arrays(images, self.LABELS, num_classes=4, split="test")
        assert not recwarn.list
        arrays = datasets.from_arrays(images, self.LABELS, num_classes=4)
        streams.TrainStream(arrays.images, arrays.labels, None, 2, 0, datasets.describe(arrays))
        assert ["2 of 4 classes of 'custom' have no training record: 2, 3." in str(w.message) for w in recwarn.list] == [True]

    def test_one_class_and_one_image_are_refused(self):
        with pytest.raises(UserError, match="1 class"):
            datasets.from_arrays(np.full((1, 5, 5, 1), 9), [1])

    @pytest.mark.parametrize("value", [0, 200, 255])
    def test_images_of_one_constant_are_refused_and_constant_channels_are_finite(self, value):
        images = np.full((4, 5, 5, 3), value, np.uint8)
        with pytest.raises(UserError, match=f"every pixel of 'custom' is {value}"):
            datasets.describe(datasets.from_arrays(images, self.LABELS))
        images[0, 0, 0, 1] = 100
        info = datasets.describe(datasets.from_arrays(images, self.LABELS))
        x = info.normalise(images)
        assert np.isfinite([*info.scale, *info.offset]).all() and np.isfinite(x).all() and np.abs(x).max() <= 1 + 1e-6

    @pytest.mark.parametrize("indices, message", [
        ([True, False, True, False], "flatnonzero"), ([0.0, 1.0], "whole numbers"), ([0, 4], "0..3"), ([-1, 0], "0..3"), ([[0, 1]], "shape")])
    def test_indices_that_are_none_are_refused(self, indices, message):
        arrays = datasets.from_arrays(np.random.default_rng(0).integers(0, 256, (4, 5, 5, 1)), self.LABELS)
        with pytest.raises(UserError, match=message):
            datasets.describe(arrays, np.array(indices))
        with pytest.raises(UserError, match=message):
            streams.EvalStream(arrays.images, arrays.labels, 2, self.info(), np.array(indices))

    @pytest.mark.parametrize("change, message", [
        ({"images": np.zeros((4, 6, 5, 1), np.uint8)}, r"\(5, 5, 1\), received \(6, 5, 1\)"),
        ({"images": np.zeros((4, 2, 5, 5, 1), np.uint8)}, r"\[N, H, W, C\]"), ({"images": np.zeros((3, 5, 5, 1), np.uint8)}, "as many labels"),
        ({"labels": np.eye(2)}, "argmax"), ({"labels": 3}, "shape"), ({"batch_size": 2.5}, "batch"), ({"batch_size": "2"}, "batch"),
        ({"seed": 1.5}, "seed"), ({"seed": None}, "seed")])
    def test_a_stream_is_refused_when_it_is_made(self, change, message):
        with pytest.raises(UserError, match=message):
            streams.TrainStream(**{"images": np.full((4, 5, 5, 1), 9, np.uint8), "labels": self.LABELS, "indices": None, "batch_size": 2,
                                   "seed": 0, "info": self.info(), **change})

    def test_spike_trains_with_nan_are_refused(self):
        info = datasets.DatasetInfo("own", (5, 5, 2), 2, ("a", "b"), (1.0, 1.0), (0.0, 0.0), False, 4, 0, True)
        trains = np.zeros((4, 3, 5, 5, 2), np.float32)
        assert info.normalise(trains > 0).dtype == np.float32
        streams.TrainStream(trains, self.LABELS, None, 2, 0, info)
        trains[1, 1, 1, 1, 1] = np.nan
        for refused in (lambda: info.normalise(trains), lambda: streams.TrainStream(trains, self.LABELS, None, 2, 0, info)):
            with pytest.raises(UserError, match="1 NaN"):
                refused()

    @pytest.mark.parametrize("count", [0, -1, 2.5])
    def test_the_first_records_are_one_or_more(self, subset, count):
        with pytest.raises(UserError, match="`count`"):
            subset.first(count)

    def test_some_records_of_ones_own_are_of_all_classes_also_where_these_lie_one_behind_the_other(self, colour):
        labels = np.repeat(np.arange(4, dtype=np.int32), 10)
        images = np.broadcast_to(labels[:, None, None, None], (40, 2, 2, 1)).astype(np.uint8)
        own = dataclasses.replace(colour, images=images, labels=labels, name="folder", num_train=40)
        some = own.some(8)
        assert some.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and some.images[:, 0, 0, 0].tolist() == some.labels.tolist()
        assert some.share_of(own) == "8 evenly spread of 40" and own.some(40) is own.some(None) is own
        known = dataclasses.replace(own, name="mnist")
        assert known.some(8).labels.tolist() == labels[:8].tolist() and known.some(8).share_of(known) == "the first 8 of 40"
        with pytest.raises(UserError, match="`count`"):
            own.some(0)


    def test_the_fingerprint_of_ones_own_data_changes_with_a_pixel_and_with_a_label(self, colour):
        images, labels = colour.images.copy(), colour.labels.copy()
        images[3, 2, 1, 0] ^= 1
        labels[[0, 1]] = labels[[1, 0]]
        assert labels.tolist() != colour.labels.tolist()
        prints = [dataclasses.replace(colour, name="npz", **change).fingerprint()["contents_crc32"]
                  for change in ({}, {"images": images}, {"labels": labels})]
        assert len(set(prints)) == 3 and dataclasses.replace(colour, name="mnist").fingerprint() == {}


class TestTfdsFolders:
    def test_an_unknown_set_in_the_folder_is_read_as_it_is(self, tmp_path):
        images, labels = noise(20), [i % 3 for i in range(20)]
        write_tfds(tmp_path, images, labels)
        got = datasets.load("tiny", "train", str(tmp_path))
        np.testing.assert_array_equal(got.images, images)
        assert got.labels.tolist() == labels and (got.num_train, got.num_test) == (20, 20)

    def test_a_truncated_file_is_named(self, tmp_path):
        file = write_tfds(tmp_path, noise(20), [i % 3 for i in range(20)])
        file.write_bytes(file.read_bytes()[:-50])
        with pytest.raises(UserError, match="train files of 'tiny'.*damaged"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_a_flipped_byte_is_noticed(self, tmp_path):
        file = write_tfds(tmp_path, noise(20), [i % 3 for i in range(20)])
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_an_empty_and_a_missing_file_are_noticed(self, tmp_path):
        file = write_tfds(tmp_path, noise(20), [i % 3 for i in range(20)])
        file.write_bytes(b"")
        with pytest.raises(UserError, match="damaged.*0 of 20|damaged"):
            datasets.load("tiny", "train", str(tmp_path))
        file.unlink()
        with pytest.raises(UserError, match="damaged"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_damaged_training_files_do_not_matter_to_the_test_split(self, tmp_path):
        write_tfds(tmp_path, noise(6), [0, 1] * 3).write_bytes(b"")
        assert len(datasets.load("tiny", "test", str(tmp_path))) == 6

    def test_a_corrupt_description_is_named(self, tmp_path):
        file = write_tfds(tmp_path, noise(6), [0, 1] * 3)
        (file.parent / "dataset_info.json").write_text("{broken")
        with pytest.raises(UserError, match="cannot be read"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_one_class_is_refused(self, tmp_path):
        write_tfds(tmp_path, noise(6), [1] * 6)
        with pytest.raises(UserError, match="1 class"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_different_sizes_are_refused(self, tmp_path):
        write_tfds(tmp_path, noise(3) + noise(3, (9, 8, 3)), [0, 1] * 3)
        with pytest.raises(UserError, match="different sizes"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_a_set_without_images_is_refused(self, tmp_path):
        import tensorflow_datasets as tfds

        features = tfds.features.FeaturesDict({"text": tfds.features.Text(),
                                               "label": tfds.features.ClassLabel(num_classes=2)})
        write_tfds(tmp_path, [_Text("a"), _Text("b")], [0, 1], features)
        with pytest.raises(UserError, match="not an image classification set"):
            datasets.load("tiny", "train", str(tmp_path))

    @staticmethod
    def features(image=None, label=None, image_name="image", label_name="label", **more):
        import tensorflow_datasets as tfds

        image = image or tfds.features.Image(shape=(8, 8, 3))
        return tfds.features.FeaturesDict({image_name: image, label_name: label or tfds.features.ClassLabel(num_classes=3), **more})

    def test_features_of_other_names_are_found(self, tmp_path):
        """By the supervised keys, or because there is one image and one label."""
        images, labels = noise(6), [0, 1, 2] * 2
        for folder, supervised in (("keys", ("photo", "species")), ("only", None)):
            write_tfds(tmp_path / folder, images, labels, self.features(image_name="photo", label_name="species"), supervised=supervised)
            got = datasets.load("tiny", "train", str(tmp_path / folder))
            np.testing.assert_array_equal(got.images, images)
            assert got.labels.tolist() == labels

    def test_what_could_be_meant_in_two_ways_is_refused(self, tmp_path):
        import tensorflow_datasets as tfds

        features = self.features(image_name="left", right=tfds.features.Image(shape=(8, 8, 3)))
        write_tfds(tmp_path, [], [], features)
        with pytest.raises(UserError, match=r"not an image classification set.*label \(ClassLabel\), left \(Image\), right \(Image\)"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_labels_of_other_kinds_are_refused(self, tmp_path):
        import tensorflow_datasets as tfds

        kinds = {"several": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)), "number": tfds.features.Scalar(np.int64),
                 "truth": tfds.features.Scalar(np.bool_), "words": tfds.features.Text()}
        for name, kind in kinds.items():
            write_tfds(tmp_path / name, [], [], self.features(label=kind))
            with pytest.raises(UserError, match=rf"'tiny' is not an image classification set.*label \({type(kind).__name__}\)"):
                datasets.load("tiny", "train", str(tmp_path / name))

    @pytest.mark.parametrize("shape, dtype", [((8, 8, 4), np.uint8), ((8, 8, 1), np.uint16), ((8, 8, 2), np.uint8)])
    def test_images_of_other_channels_and_depths_are_refused(self, tmp_path, shape, dtype):
        import tensorflow_datasets as tfds

        try:
            image = tfds.features.Image(shape=shape, dtype=dtype, encoding_format="png")
        except ValueError:
            pytest.skip("TFDS itself refuses such a set")
        write_tfds(tmp_path, [], [], self.features(image))
        with pytest.raises(UserError, match="'tiny' has .* images of shape.*legal are uint8 images with 1 or 3 channels"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_splits_of_other_names_are_listed(self, tmp_path):
        write_tfds(tmp_path / "one", noise(6), [0, 1, 2] * 2, splits=("train",))
        with pytest.warns(UserWarning, match="'tiny' has no test split, so that eval.py has nothing to test: .*--dataset=folder"):
            assert datasets.load("tiny", "train", str(tmp_path / "one")).num_test == 0
        with pytest.raises(UserError, match=r"no records in its test split; it has \{'train': 6\}: .*--dataset=folder"):
            datasets.load("tiny", "test", str(tmp_path / "one"))
        write_tfds(tmp_path / "two", noise(6), [0, 1, 2] * 2, splits=("training", "validation"))
        assert len(datasets.load("tiny", "test", str(tmp_path / "two"))) == 6
        with pytest.raises(UserError, match=r"no records in its train split; it has \{'training': 6, 'validation': 6\}"):
            datasets.load("tiny", "train", str(tmp_path / "two"))

    def test_records_without_a_known_label_are_refused(self, tmp_path):
        write_tfds(tmp_path, noise(3), [-1, -1, -1], self.features())
        with pytest.raises(UserError, match="must lie in 0..2, received -1..-1 .-1 stands for"):
            datasets.load("tiny", "test", str(tmp_path))

    def test_a_class_without_records_is_said(self, tmp_path):
        write_tfds(tmp_path, noise(4), [0, 2, 0, 2], self.features())
        with pytest.warns(UserWarning, match="1 of 3 classes of 'tiny' have no training record: 1"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_a_set_beyond_the_memory_limit_is_refused_by_name(self, tmp_path, monkeypatch):
        write_tfds(tmp_path, noise(6), [0, 1] * 3)
        monkeypatch.setattr(tfds_source, "MAX_BYTES", 6 * 8 * 8 * 3 - 1)
        with pytest.raises(UserError, match="'tiny'.*limit"):
            datasets.load("tiny", "train", str(tmp_path))

    def test_missing_data_say_where_was_looked_and_nothing_is_written(self, tmp_path):
        with pytest.raises(UserError, match=f"{tmp_path}.*--data_dir"):
            datasets.load("cifar10", "train", str(tmp_path))
        assert not list(tmp_path.iterdir())
        with pytest.raises(UserError, match="does not exist"):
            datasets.load("cifar10", "train", str(tmp_path / "nowhere"))

    def test_no_network_is_said_at_once(self, tmp_path, monkeypatch):
        def unreachable(*_):
            raise OSError("no network")

        monkeypatch.setattr(tfds_source.socket, "getaddrinfo", unreachable)
        for variable in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.delenv(variable, raising=False)
        import tensorflow_datasets as tfds

        real = tfds.builder
        monkeypatch.setattr(tfds, "builder", lambda name, data_dir: real(name, data_dir=str(tmp_path)))
        with pytest.raises(UserError, match=f"{tmp_path}.*no network"):
            datasets.load("cifar100", "train")

    @pytest.mark.parametrize("name, close", [("cifr10", "cifar10"), ("MNIST", "mnist"),
                                             ("fashion-mnist", "fashion_mnist"), ("shvn", "svhn"),
                                             ("", "Known"), ("../mnist", "Known")])
    def test_unknown_names_list_the_known_and_the_closest(self, name, close):
        with pytest.raises(UserError, match=close) as caught:
            datasets.load(name, "train")
        assert "mnist_subset" in str(caught.value)

    def test_svhn_is_an_alias_and_other_tfds_sets_pass(self):
        assert datasets.canonical_name("svhn") == "svhn_cropped"
        assert datasets.canonical_name("kmnist") == "kmnist"


class TestCatalogue:
    def test_what_belongs_together_is_there_together(self):
        for name, dataset in catalogue.CATALOGUE.items():
            assert (dataset.source is None) == (dataset.num_train == 0) == (dataset.num_test == 0), name
            assert not dataset.event_based or not (dataset.normalisation or dataset.augment), name
        assert set(catalogue.ALIASES.values()) <= set(datasets.KNOWN)
        assert catalogue.WITH_EVENTS == ("nmnist", "recordings") and catalogue.WITH_EXTRA == ("svhn_cropped",)

    def test_of_an_unknown_set_nothing_is_presumed(self, colour):
        known = catalogue.facts("beans")
        assert not (known.augment or known.event_based or known.num_extra or known.normalisation) and known.mirrored
        assert datasets.describe(dataclasses.replace(colour, name="beans")).mirrored

    def test_needs_no_numpy(self):
        code = "import sys, tfspike.datasets.catalogue; assert not {'numpy', 'tensorflow'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[1])


class TestExtra:
    def test_its_records_follow_those_of_train_and_test_stays_what_it_is(self, tmp_path):
        images, more, labels = noise(6), noise(9, seed=1), [i % 5 for i in range(9)]
        write_with_extra(tmp_path, images, labels, more)
        without, got, test = (datasets.load("tiny", split, str(tmp_path), extra=extra)
                              for split, extra in (("train", False), ("train", True), ("test", True)))
        np.testing.assert_array_equal(without.images, np.stack(images))
        np.testing.assert_array_equal(got.images, np.stack(images + more))
        assert got.labels.tolist() == labels[:6] + labels and got.num_train == 15 and without.num_train == 6
        assert len(test) == test.num_test == 2 and test.num_train == 15

    def test_a_copy_without_it_and_a_set_that_never_has_it_are_refused(self, tmp_path):
        write_tfds(tmp_path, noise(4), [0, 1, 0, 1])
        assert len(datasets.load("tiny", "train", str(tmp_path))) == 4
        with pytest.raises(UserError, match=r"has no split 'extra', it has \{'train': 4, 'test': 4\}.*--noextra"):
            datasets.load("tiny", "train", str(tmp_path), extra=True)
        with pytest.raises(UserError, match="mnist_subset has no split 'extra'"):
            datasets.load("mnist_subset", "train", extra=True)

    @pytest.mark.parametrize("option", [{"image_size": (8, 8)}, {"sensor_size": (34, 34)}, {"window_ms": 100.0}])
    def test_sizes_and_windows_of_other_sets_are_refused(self, option, tmp_path):
        for name in ("mnist_subset", "nmnist", "npz", *(("folder",) if "image_size" not in option else ())):
            with pytest.raises(UserError, match=f"^{next(iter(option))} is of the data set .*leave it out.*for '{name}'"):
                datasets.load(name, "train", str(tmp_path), 5, **option)


class _Text(str):
    shape = ()


class TestImageFiles:
    @staticmethod
    def write(path, image):
        import tensorflow as tf

        encode = tf.io.encode_png if path.suffix == ".png" else tf.io.encode_jpeg
        path.write_bytes(encode(image).numpy())

    def test_folders_and_files_are_read_in_order_and_converted(self, tmp_path):
        grey, rgb = noise(1, (8, 8, 1))[0], noise(1)[0]
        self.write(tmp_path / "b.png", grey)
        self.write(tmp_path / "a.jpg", rgb)
        images, files = image_files.load_images([str(tmp_path)], (8, 8, 3))
        assert images.shape == (2, 8, 8, 3) and [pathlib.Path(f).name for f in files] == ["a.jpg", "b.png"]
        np.testing.assert_array_equal(images[1], np.repeat(grey, 3, axis=2))
        assert image_files.load_images(str(tmp_path / "a.jpg"), (8, 8, 1))[0].shape == (1, 8, 8, 1)

    def test_another_size_is_refused_or_resized(self, tmp_path):
        self.write(tmp_path / "a.png", np.full((16, 12, 1), 77, np.uint8))
        with pytest.raises(UserError, match="16x12.*8x8"):
            image_files.load_images([tmp_path], (8, 8, 1))
        with pytest.warns(UserWarning, match="a.png has other proportions"):
            assert (image_files.load_images([tmp_path], (8, 8, 1), resize=True)[0] == 77).all()

    def test_unreadable_and_missing_files_are_named(self, tmp_path):
        with pytest.raises(UserError, match="no PNG or JPEG"):
            image_files.load_images([tmp_path / "none.png"], (8, 8, 1))
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        with pytest.raises(UserError, match="x.png is not a readable"):
            image_files.load_images([tmp_path], (8, 8, 1))


@pytest.mark.equipped
@needs_real
class TestRealData:
    def test_mnist_is_complete_and_holds_the_embedded_subset(self, subset):
        got = datasets.load("mnist", "train", REAL)
        assert got.images.shape == (60000, 28, 28, 1) and got.num_test == 10000
        whole = {image.tobytes(): label for image, label in zip(got.images, got.labels)}
        assert all(whole.get(i.tobytes()) == label for i, label in zip(subset.images, subset.labels))

    def test_cifar10_is_normalised_to_the_unit_interval(self):
        got = datasets.load("cifar10", "test", REAL)
        assert got.images.shape == (10000, 32, 32, 3) and np.bincount(got.labels).tolist() == [1000] * 10
        assert got.class_names[0] == "airplane"
        assert 0.9 < np.abs(datasets.describe(got).normalise(got.images)).max() <= 1.001
