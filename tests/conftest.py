"""What all tests share. Nothing here imports TensorFlow: half of the suite needs none."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(autouse=True)
def _global_policy_is_left_as_it_was() -> Iterator[None]:
    """A test that changes Keras' global dtype policy cannot change the next one."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")
