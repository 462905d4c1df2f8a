"""Checks of settings: numbers, counts and choices that a user gives. They name what came, and what was expected."""

from __future__ import annotations

import math

import numpy as np

LEAST = {"n_iter": 0}  # counts that operators take, and how small they may be


def check_settings(function, arguments):
    """Check the settings among the arguments; epsilon becomes a Python float there."""
    if "epsilon" in arguments:
        # a Python float: a NumPy scalar would turn float32 arrays into float64
        arguments["epsilon"] = check_epsilon(arguments["epsilon"], function)
    for name, least in LEAST.items():
        if arguments.get(name) is not None:
            check_count(arguments[name], name, function, least=least)
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
    """Raise unless value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__} {value!r}")
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {value}")


def check_choice(value, name, function, choices):
    """Raise unless value is one of the choices."""
    if value not in choices:
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
