#!/usr/bin/env bash
# Sets up what tests need that a fresh machine has not, and runs these tests: a browser, PyTorch libraries, tonic, data.
#
#   tools/equipped_tests.sh [arguments of pytest]
#
# In the environment of `pip install -e ".[test]"`, from anywhere. What there is already is used: a Chromium on the path,
# TFSPIKE_TORCH_PYTHON (a Python that has torch, snntorch, spikingjelly and norse), TFSPIKE_JAX_PYTHON (one that has
# jax and pillow), TFSPIKE_DATA_DIR (a folder of TensorFlow Datasets that holds mnist and cifar10; N-MNIST, fetched by hand, in it
# or beside it).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build

if ! command -v chromium chromium-browser google-chrome > /dev/null; then
  if command -v apt-get > /dev/null; then
    $([ "$(id -u)" = 0 ] || echo sudo) apt-get install -y chromium
  else
    echo "Install Chromium, or Chrome, so that it is on the path; tests of pages skip without." >&2
  fi
fi

if [ -z "${TFSPIKE_TORCH_PYTHON:-}" ]; then
  if [ ! -e build/peers/complete ]; then
    python3 -m venv build/peers
    build/peers/bin/pip install --no-deps -r benchmarks/requirements-peers.txt
    touch build/peers/complete
  fi
  export TFSPIKE_TORCH_PYTHON=$PWD/build/peers/bin/python
fi

if [ -z "${TFSPIKE_JAX_PYTHON:-}" ]; then
  if [ ! -e build/jax/complete ]; then
    python3 -m venv build/jax
    build/jax/bin/pip install "jax>=0.7" pillow
    touch build/jax/complete
  fi
  export TFSPIKE_JAX_PYTHON=$PWD/build/jax/bin/python
fi

python -c "import tonic" 2> /dev/null || python -m pip install "tonic>=1.7"

if [ -z "${TFSPIKE_DATA_DIR:-}" ]; then
  export TFSPIKE_DATA_DIR=$PWD/build/data
  python -c "
import sys, tensorflow_datasets as tfds
for name in ('mnist', 'cifar10'):
    tfds.builder(name, data_dir=sys.argv[1]).download_and_prepare()" "$TFSPIKE_DATA_DIR"
fi

exec python -m pytest -m equipped "$@"
