"""How objects that hold large arrays print: in a line, by their shapes and a few facts."""

from __future__ import annotations

from dataclasses import fields


def in_short(x, *facts):
    """Name the class of x and some facts about it; those that are empty are left out.

    Examples
    --------
    >>> in_short(3, "digits 1", "", "odd")
    '<int: digits 1, odd>'
    """
    return f"<{type(x).__name__}: {', '.join(fact for fact in facts if fact)}>"


def extent(name, values):
    """Smallest and largest of some values, two decimals each; empty where there are none.

    Examples
    --------
    >>> extent("R²", [0.5, 0.25]), extent("R²", None)
    ('R² 0.25 to 0.50', '')
    """
    return "" if values is None else f"{name} {min(values):.2f} to {max(values):.2f}"


def shapes_of_fields(x):
    """Name the class of a dataclass of arrays, and their shapes: ``Slices(directions (4, 8))``."""
    arrays = ((field.name, getattr(x, field.name)) for field in fields(x))
    return f"{type(x).__name__}({', '.join(f'{name} {tuple(array.shape)}' for name, array in arrays)})"


def values_if_short(x):
    """Print a named tuple of arrays: its values where they fit in 200 characters, shapes and dtypes otherwise."""
    values = ", ".join(f"{name}={array!r}" for name, array in x._asdict().items())
    if len(values) > 200 - len(f"{type(x).__name__}()"):
        values = ", ".join(f"{name}={tuple(a.shape)} of {a.dtype}" for name, a in x._asdict().items())
    return f"{type(x).__name__}({values})"
