"""Every public callable, found by walking the public names, given what it does not take: refused, with a reason.

A new function is covered without being listed: its parameters are read off its signature. For each of them something of
the wrong kind is put in place of what is right, where `RIGHT` knows it by its name; the others keep their defaults.
"""

import inspect
import re

import numpy as np
import pytest
from families import families

import asap_ref as ar

RNG = np.random.default_rng(0)
Q = RNG.standard_normal((2, 2, 5, 4))
S = RNG.standard_normal((2, 5, 5))
IMAGES = RNG.standard_normal((12, 8, 8))
SMALL = ar.Architecture(patch=4, width=8, n_layers=1, n_heads=2, n_classes=3)
SINKHORN = ar.Attention("sinkhorn", {"n_iter": 2})
TEACHER = ar.Transformer.create(SMALL, SINKHORN)
COMPILED, _ = ar.compile_model(TEACHER, [IMAGES], n_slices=2, quadratic=0)
AMORTIZER = ar.fit_amortizer([(Q, Q)], n_slices=2, n_iter=2)
REPORT = ar.fidelity_report(COMPILED, IMAGES)
SLICES = families(np.eye(4))
RIGHT = {  # what a parameter of that name takes
    **dict.fromkeys(("q", "k", "v"), Q),
    **{"scores": S, "dual": S[:, 0], "query_dual": S[:, 0], "plan": S, "duals": ar.Duals(S[:, 0], S[:, 0])},
    **{"x": S[0], "y": S[0], "directions": np.eye(4), "amortizer": AMORTIZER, "parts": ((SINKHORN, (0, 1)),)},
    **{"families": SLICES, "weights": np.ones((2, sum(family.count for family in SLICES)))},
    **{
        "dim": 4,
        "n_slices": 2,
        "batches": [(Q, Q)],
        "model": TEACHER,
        "inputs": IMAGES,
        "labels": np.zeros(12, int),
    },
    **{"compiled": COMPILED, "before": REPORT, "after": REPORT, "settings": ar.TrainingSettings(epochs=1)},
    **{"name": "numpy", "path": "absent.npz", "omega": 1.5},
}
OTHERS = {"compile_model": {"batches": [IMAGES]}}  # where a name means something else
HOLDERS = {
    "Amortizer",
    "Drift",
    "Duals",
    "FidelityReport",
    "Moments",
    "OnePass",
    "Quadratic",
    "Slices",
    "SufficientStatistics",
}
HOLDERS |= {
    "Cumulants",
    "Family",
    "Transformer",
    "Sequences",
    "Matcher",
    "Pairs",
}  # what they hold is checked in use
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


def public_callables():
    for name in sorted(ar.__all__):
        found = getattr(ar, name)
        if callable(found) and name not in HOLDERS:
            yield name, found


def parameters(name, function):
    """The arguments that are right, and the names of all parameters that can be given."""
    takes = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD}
    right = {}
    for each in takes.values():
        if each.kind is each.VAR_POSITIONAL:
            continue
        if each.default is each.empty:
            right[each.name] = OTHERS.get(name, {}).get(each.name, RIGHT.get(each.name))
    return right, [n for n, p in takes.items() if p.kind is not p.VAR_POSITIONAL]


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
