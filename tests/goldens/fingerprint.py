"""The fingerprint of what the library computes: SHA-256 of the weights after three short runs of train.py.

    python tests/goldens/fingerprint.py

A change that means to change no number prints the same three lines before and after, on the same machine: other
processors and other versions of TensorFlow round differently. Two epochs of twenty steps each, on the embedded digits,
one thread, seed 0: the paper's slope under both gradients, and what the bare command does for a normalised ResNet20.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RUNS = {
    "lenet rate": ["--model=lenet", "--gradient=rate", "--timesteps=20"],
    "lenet event": ["--model=lenet", "--gradient=event", "--timesteps=20"],
    "resnet20": ["--model=resnet20", "--shortcut=spikes"],
}
COMMON = ["--dataset=mnist_subset", "--epochs=2", "--steps_per_epoch=20", "--seed=0", "--strategy=one",
          "--notensorboard", "--export=", "--kernel=dense"]


def fingerprint(flags: list[str]) -> str:
    """SHA-256 of the names and the bytes of the last checkpoint's weights."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *COMMON, *flags, f"--workdir={folder}/run"]
        environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        digest = hashlib.sha256()
        with np.load(f"{folder}/run/checkpoints/last/model.npz") as arrays:
            for name in sorted(arrays.files):
                digest.update(name.encode() + arrays[name].tobytes())
        return digest.hexdigest()


if __name__ == "__main__":
    print(json.dumps({name: fingerprint(flags) for name, flags in RUNS.items()}, indent=1))
