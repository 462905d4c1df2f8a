"""The table of seeded faults keeps up with the source, so that it can be measured again at any time."""

import ast
import itertools

import pytest

from asap_ref.lab import gallery

MUTANTS = gallery.load("mutants")


@pytest.mark.parametrize("file", MUTANTS.TESTS)
def test_each_fault_still_applies_exactly_once(file):
    text = (MUTANTS.ROOT / "asap_ref" / file).read_text()
    for fault in MUTANTS.FAULTS:
        if fault.file == file:
            ast.parse(MUTANTS.seeded(text, fault))  # raises where the text is not there, or not once


def test_a_fault_that_does_not_apply_is_named():
    fault = MUTANTS.FAULTS[0]
    with pytest.raises(ValueError, match="holds 0 times, not once"):
        MUTANTS.seeded("nothing", fault)
    with pytest.raises(ValueError, match="holds 2 times, not once"):
        MUTANTS.seeded(2 * fault.old, fault)


def test_the_tests_of_each_file_exist():
    assert {fault.file for fault in MUTANTS.FAULTS} == set(MUTANTS.TESTS)
    for name in set(itertools.chain(*MUTANTS.TESTS.values())):
        assert (MUTANTS.ROOT / "tests" / name).exists()
