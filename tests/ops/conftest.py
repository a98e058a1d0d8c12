"""Every test of an operation that is compiled, too, runs on both implementations."""

import pytest

from kerasdet import ops
from kerasdet.ops import library


@pytest.fixture(params=["tensorflow", "compiled"])
def implementation(request):
    if request.param == "compiled" and library.raw_ops() is None:
        pytest.skip("no compiled ops here")
    with ops.implementation(request.param):
        yield request.param
