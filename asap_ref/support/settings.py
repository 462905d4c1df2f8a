"""Checks of settings: numbers, counts and choices that a user gives. They name what came, and what was expected."""

from __future__ import annotations

import math

import numpy as np

LEAST = {"n_iter": 0, "slices_at_once": 1}  # counts that operators take, and how small they may be
POSITIVE = {
    "epsilon": False,
    "temperature": False,
    "inverse_temperature": True,
}  # numbers, and whether they may be zero
CHOICES = {
    "onto": ("key", "query"),
    "cost": ("bilinear", "sqeuclidean"),
    "start": ("zero", "gaussian", "sorting"),
}


def check_settings(function, arguments):
    """Check the settings among the arguments; numbers become Python's there.

    A NumPy scalar would turn float32 arrays into float64, and could not be written to a file.
    """
    for name, zero in POSITIVE.items():
        if name in arguments:
            arguments[name] = check_positive(arguments[name], name, function, or_zero=zero)
    for name, least in LEAST.items():
        if arguments.get(name) is not None:
            arguments[name] = check_count(arguments[name], name, function, least=least)
    for name, choices in CHOICES.items():
        if name in arguments:
            check_choice(arguments[name], name, function, choices)
    if "hard" in arguments:
        arguments["hard"] = check_flag(arguments["hard"], "hard", function)
    if "amortizer" in arguments and not hasattr(arguments["amortizer"], "predict"):
        got = type(arguments["amortizer"]).__name__
        raise TypeError(f"{function}: amortizer must be an Amortizer, as from fit_amortizer, got {got}")


def check_epsilon(epsilon, function):
    """Return epsilon as a float; raise unless it is a positive finite number."""
    return check_positive(epsilon, "epsilon", function)


def check_positive(value, name, function, *, or_zero=False):
    """Return value as a float; raise unless it is a positive (or zero, where that is allowed) finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        bound = "at least 0" if or_zero else "positive"
        raise ValueError(f"{function}: {name} must be {bound} and finite, got {value}")
    return float(value)


def check_count(value, name, function, *, least):
    """Return value as an int; raise unless it is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__} {value!r}")
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {value}")
    return int(value)


def check_flag(value, name, function):
    """Return value as a bool; raise unless it is one: "no" would count as true."""
    if not isinstance(value, bool | np.bool):
        raise TypeError(f"{function}: {name} must be True or False, got {type(value).__name__} {value!r:.60}")
    return bool(value)


def check_seed(seed, function):
    """Return the seed, an int of at least 0 or a numpy.random.Generator; raise if it is anything else."""
    return seed if isinstance(seed, np.random.Generator) else check_count(seed, "seed", function, least=0)


def check_choice(value, name, function, choices):
    """Raise unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_directions(name, directions, q):
    """Raise unless the directions are (d, L), or (H, d, L) with the heads of q (..., H, n, d)."""
    d = q.shape[-1]
    own = directions.ndim == 3 and q.ndim >= 3 and directions.shape[0] == q.shape[-3]
    if not (directions.ndim == 2 or own) or directions.shape[-2] != d:
        heads = f" or (H, d, L) with H = {q.shape[-3]}" if q.ndim >= 3 else ""
        raise ValueError(
            f"{name} has shape {tuple(directions.shape)}, expected (d, L){heads}, with d = {d} as in q and k"
        )
