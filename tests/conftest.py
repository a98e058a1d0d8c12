"""What the tests share: quiet TensorFlow, fixed seeds, and where the reference material lies."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

SHARED = Path(os.environ.get("KERASDET_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(path):
    """The path of a piece of reference material; skips the test where it is not present."""
    full = SHARED / path
    if not full.exists():
        pytest.skip(f"no shared/{path} here")
    return full


@pytest.fixture
def rng():
    return np.random.default_rng(0)
