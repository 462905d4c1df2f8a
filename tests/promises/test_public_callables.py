"""Every public callable, found by walking the public names, given what it does not take: refused, with a reason.

A new function is covered without being listed: its parameters are read off its signature. For each of them something of
the wrong kind is put in place of what is right, which `public.RIGHT` knows by its name; others keep their defaults.
"""

import re

import numpy as np
import pytest
from public import Q, parameters, public_callables

import asap_ref as ar

UNCHECKED = {  # parameters that may be anything, and why
    "evaluate": "a function of the user's",
    "augment": "a function of the user's",
    "label": "words of a progress bar",
    "checkpoint": "a path",
    "resume": "asked for its truth",
    "path": "a path",
    "xp": "a module",
    "dtype": "of a module",
    "client": "of Dask",
}
WRONG = {
    "an object": object(),
    "a word": "many",
    "a complex number": 1j,
    "not a number": float("nan"),
    "a list of strings": ["a", "b"],
    "an array of objects": np.asarray([None, "a"], dtype=object),
    "an array of complex numbers": np.full((2, 2, 5, 4), 1j),
    "a masked array": np.ma.masked_array(Q, Q > 0),
    "a negative integer": -3,
}


CASES = [
    pytest.param(name, parameter, id=f"{name}-{parameter}")
    for name, function in public_callables()
    for parameter in parameters(name, function)[1]
    if parameter not in UNCHECKED
]


@pytest.mark.parametrize("name", [name for name, _ in public_callables()])
def test_what_is_right_is_known_for_every_parameter_that_must_be_given(name):
    """A parameter of a new name wants a line in RIGHT, and a reason if it may be anything."""
    right, _ = parameters(name, getattr(ar, name))
    own = {"Attention": ("name",), "array_namespace": (), "TrainingSettings": (), "Architecture": ()}.get(name, ())
    missing = [key for key, value in right.items() if value is None and key not in own]
    assert not missing, f"{name} takes {missing}"


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_what_is_of_the_wrong_kind_is_refused_with_the_name_of_what_it_was_given_for(name, parameter):
    function = getattr(ar, name)
    right, _ = parameters(name, function)
    for kind, wrong in WRONG.items():
        if (name, kind) == ("to_numpy", "an array of complex numbers"):  # which NumPy has
            continue
        try:
            function(**{**right, parameter: wrong})
        except (TypeError, ValueError, OSError, ModuleNotFoundError) as error:
            told = str(error)
            # of ours: it names the parameter or the function, what it expected, or what came
            assert re.search(rf"\b{parameter}\b|\b{name}\b|expected|must be|got", told), (kind, told)
        else:
            pytest.fail(f"{name}({parameter}={kind}) was taken")
