"""Make the embedded data set `tfspike/data/mnist_subset.npz` from a complete TFDS copy of MNIST.

    python tools/make_mnist_subset.py --data_dir=FOLDER_WITH_TFDS_MNIST [--out=tfspike/data/mnist_subset.npz]

Draws 600 training and 100 test digits of every class without replacement (seed 0) and keeps them in the order of the
original files. TFDS shuffles records by a hash of their number, so the original numbers are recovered from that hash;
the four original IDX files are rebuilt in memory and their published MD5 sums compared before anything is written.
The draw uses raw PCG64 numbers, a stream that NumPy promises not to change: every run writes the same arrays.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import struct

import numpy as np

PER_CLASS = {"train": 600, "test": 100}
SEED = 0
MD5 = {  # of the uncompressed IDX files (images, labels)
    "train": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
    "test": ("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
}


def original_order(images: np.ndarray, labels: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Put TFDS records [N, 28, 28], [N] back into the order of the IDX files and verify the published MD5 sums."""
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher(split)
    numbers = np.array(sorted(range(len(labels)), key=hasher.hash_key))  # original number of each TFDS record
    order = np.argsort(numbers)
    images, labels = images[order], labels[order]
    found = (hashlib.md5(struct.pack(">4i", 2051, len(labels), 28, 28) + images.tobytes()).hexdigest(),
             hashlib.md5(struct.pack(">2i", 2049, len(labels)) + labels.tobytes()).hexdigest())
    if found != MD5[split]:
        raise SystemExit(f"the {split} split is not the original MNIST: MD5 {found}, published {MD5[split]}")
    return images, labels


def draw(labels: np.ndarray, per_class: int, rng: np.random.PCG64) -> np.ndarray:
    """Indices of `per_class` records of every class, drawn without replacement, sorted."""
    keys = rng.random_raw(len(labels))
    chosen = [np.flatnonzero(labels == c)[np.argsort(keys[labels == c], kind="stable")[:per_class]] for c in range(10)]
    return np.sort(np.concatenate(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="TFDS folder that holds mnist/3.0.1")
    default = pathlib.Path(__file__).parents[1] / "tfspike" / "data" / "mnist_subset.npz"
    parser.add_argument("--out", default=default, type=pathlib.Path)
    args = parser.parse_args()

    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist:3.0.1", data_dir=args.data_dir)
    rng, arrays = np.random.PCG64(SEED), {}
    for split, per_class in PER_CLASS.items():
        batch = next(iter(tfds.as_numpy(builder.as_dataset(split=split, batch_size=100_000, shuffle_files=False))))
        images, labels = original_order(batch["image"][..., 0], batch["label"].astype(np.uint8), split)
        index = draw(labels, per_class, rng)
        arrays.update({f"{split}_images": images[index], f"{split}_labels": labels[index],
                       f"{split}_index": index.astype(np.int32)})
    np.savez_compressed(args.out, **arrays)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
