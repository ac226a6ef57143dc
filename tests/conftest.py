"""What all tests share. Nothing here imports TensorFlow: half of the suite needs none."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n: processes share the cores, so each operation takes one
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


@pytest.fixture(autouse=True)
def _defaults_of_tests() -> Iterator[None]:
    """Kernels that need no compiler; and no test depends on those before it, by random numbers or by Keras' policy."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
    if "tensorflow" in sys.modules:
        # compiling costs a second for every new shape; the tests of the engine name each kernel, runs of train.py use it
        from tfspike.engine import kernels

        kernels.ON_CPU = "plain"
        # nor does it depend on what --kernel=auto measures here; tests/test_choice.py sets what is to be found
        from tfspike.engine.events import choice

        choice.SMALLEST_BATCH = float("inf")
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture
def layer_by_layer() -> Iterator[None]:
    """The test has a model that the engine does not run, and the user is told of it."""
    with pytest.warns(UserWarning, match="layer by layer, which takes more time and memory"):
        yield
