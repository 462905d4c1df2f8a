"""Every seeded fault of kernel_faults.py is noticed: a check fails, or the emulator sees what is not allowed."""

from pathlib import Path

import battery
import emulator
import pytest
import stand_in
from kernel_faults import FAULTS, seeded

from asap_ref.fast.kernels import build

FOLDER = Path(build.__file__).parent
NAMES = [f"{part}: {what}" for part, what, *_ in FAULTS]


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_each_fault_still_applies(fault):
    text = (FOLDER / f"{fault[0]}.cu").read_text()
    assert seeded(text, fault) != text


def first_failure(place):
    """What notices something: the name of a check, and how; or None."""
    with emulator.threads_in_order(2):  # shuffled: what depends on the order shows
        for name, check in battery.checks(place):
            try:
                found = check()
            except (AssertionError, ArithmeticError, RuntimeWarning, emulator.EmulationError) as error:
                return f"{name}: {type(error).__name__} {error}"
            if not found <= 1e-11:
                return f"{name}: error {found:.1e}"
    return None


@pytest.fixture
def kernels_with(emulated, monkeypatch):
    """Let the kernels be compiled with a fault in them."""
    build.function.cache_clear()
    build._module.cache_clear()

    def change(fault):
        def edit(code):
            part = f'#line 1 "{fault[0]}.cu"\n'
            before, marker, rest = code.partition(part)
            text, more, after = rest.partition('\n#line 1 "')
            return code if not marker else before + marker + seeded(text, fault) + more + after

        monkeypatch.setattr(emulator, "edit", edit)

    yield change
    build.function.cache_clear()
    build._module.cache_clear()


@pytest.mark.slow
def test_nothing_is_noticed_where_there_is_no_fault(kernels_with):
    assert first_failure(stand_in.NAMESPACE.asarray) is None


@pytest.mark.slow  # each is compiled anew
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_each_fault_is_noticed(fault, kernels_with):
    kernels_with(fault)
    assert first_failure(stand_in.NAMESPACE.asarray)
