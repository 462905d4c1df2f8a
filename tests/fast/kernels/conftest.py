"""Where the kernels run: emulated on the CPU, and on a card where there is one."""

from importlib.util import find_spec

import battery
import emulator
import pytest
import stand_in
from backends import BACKENDS

from asap_ref.fast.kernels import finite
from asap_ref.support.arrays import array_module


@pytest.fixture(params=["emulated", *(["cupy"] if find_spec("cupy") else [])], scope="session")
def device(request):
    """The array module that the kernels run on; CuPy where it is installed."""
    if reason := emulator.missing() if request.param == "emulated" else BACKENDS["cupy"].missing():
        pytest.skip(reason)
    return stand_in.NAMESPACE if request.param == "emulated" else array_module("cupy")


@pytest.fixture
def case(device):
    """Make a `battery.Case` on the device."""

    def make(*args, **settings):
        return battery.Case(device.asarray, *args, **settings)

    return make


@pytest.fixture
def emulated():
    """The stand-in, for what a card does not tell: counts, and orders of threads."""
    if reason := emulator.missing():
        pytest.skip(reason)
    return stand_in.NAMESPACE


@pytest.fixture(autouse=True)
def nothing_found_before():
    """No test sees what another one has left on a flag."""
    yield
    while finite._waiting:
        _, found = finite._waiting.popitem()
        found[0] = 0
