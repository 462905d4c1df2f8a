"""Parameters are nested dicts of arrays; these are the few things one does with all of them at once.

`map_leaves` and `named_leaves` go through tuples, lists and dataclasses as well: duals, families of features.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np

from asap_ref.support.arrays import array_namespace, from_numpy, is_array, to_numpy


def tree_map(function, tree, *others):
    """Apply a function leaf by leaf to nested dicts of the same keys.

    Examples
    --------
    >>> tree_map(lambda x, y: x + y, {"a": 1, "b": {"c": 2}}, {"a": 10, "b": {"c": 20}})
    {'a': 11, 'b': {'c': 22}}
    """
    if isinstance(tree, dict):
        return {key: tree_map(function, value, *(o[key] for o in others)) for key, value in tree.items()}
    return function(tree, *others)


def leaves(tree):
    """List the arrays of a nested dict, in order."""
    return list(flatten(tree).values())


def place(tree, xp, *, dtype=None, device=None):
    """Copy a nested dict of arrays of any module into the module xp."""
    return tree_map(lambda x: from_numpy(to_numpy(x), xp, dtype=dtype, device=device), tree)


def check_like(tree, expected):
    """Raise unless a nested dict has the keys and shapes of another.

    Examples
    --------
    >>> check_like({"a": np.zeros(2)}, {"a": np.zeros(2), "b": np.zeros(3)})
    Traceback (most recent call last):
        ...
    ValueError: arrays missing, unknown or of another shape: b
    """
    found, expected = ({key: tuple(x.shape) for key, x in flatten(part).items()} for part in (tree, expected))
    if found != expected:
        wrong = sorted(key for key in found | expected if found.get(key) != expected.get(key))
        raise ValueError(f"arrays missing, unknown or of another shape: {', '.join(wrong)}")


def count(tree):
    """Count the numbers in a nested dict of arrays."""
    return sum(int(np.prod(x.shape)) for x in leaves(tree))


def flatten(tree, prefix=""):
    """Join the keys of a nested dict: {"a": {"b": x}} -> {"a/b": x}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat):
    """Undo `flatten`: {"a/b": x} -> {"a": {"b": x}}."""
    tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def map_leaves(change, x):
    """Apply a change to every leaf of nested dicts, tuples (named or not), lists and dataclasses; None is no leaf.

    Examples
    --------
    >>> map_leaves(lambda x: 2 * x, {"a": (1, [2, None])})
    {'a': (2, [4, None])}
    """
    if x is None:
        return None
    if isinstance(x, dict):
        return {key: map_leaves(change, item) for key, item in x.items()}
    if isinstance(x, tuple | list):
        parts = [map_leaves(change, item) for item in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    if is_dataclass(x):
        return replace(x, **{field.name: map_leaves(change, getattr(x, field.name)) for field in fields(x)})
    return change(x)


def of_heads(x, heads):
    """Cut what `map_leaves` goes through to some of the heads: an array with three axes has one entry a head."""
    return map_leaves(lambda array: array[heads] if array.ndim == 3 else array, x)


def read_only(x):
    """A copy of a NumPy array that cannot be written to."""
    x = np.array(x)
    x.flags.writeable = False
    return x


def place_like(like, x):
    """Copy the NumPy arrays of what `map_leaves` goes through to the module, dtype and device of another array."""
    xp, where = array_namespace(like), dict(dtype=like.dtype, device=like.device)
    return map_leaves(lambda array: from_numpy(array, xp, **where), x)


def same(x, y):
    """Say whether two of what `map_leaves` goes through are of one type, shape, dtype and value; NaN is itself.

    Examples
    --------
    >>> same({"a": (1, np.ones(2))}, {"a": (1, np.ones(2))}), same(np.ones(2), np.ones((2, 1)))
    (True, False)
    """
    if is_array(x) and is_array(y):
        kinds = [(type(z), tuple(z.shape), z.dtype) for z in (x, y)]
        a, b = to_numpy(x), to_numpy(y)
        return kinds[0] == kinds[1] and bool(np.all((a == b) | ((a != a) & (b != b))))
    if type(x) is not type(y):
        return False
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
    if isinstance(x, tuple | list):
        return len(x) == len(y) and all(map(same, x, y))
    if is_dataclass(x):
        return all(same(getattr(x, field.name), getattr(y, field.name)) for field in fields(x) if field.compare)
    return bool(x == y)


class EqualByValue:
    """A dataclass that holds arrays, declared with ``eq=False``: two are equal if all that they hold is.

    The equality that a dataclass writes itself asks arrays for a truth value, which they do not have.
    """

    def __hash__(self):
        return hash(type(self))  # arrays have none; what is equal is of one class

    def __eq__(self, other):
        return same(self, other) if type(other) is type(self) else NotImplemented


def named_leaves(name, x):
    """List the (name, leaf) of what `map_leaves` goes through: "name/key", "name[0]", "name.field".

    Examples
    --------
    >>> named_leaves("p", {"a": (1, 2)})
    [('p/a[0]', 1), ('p/a[1]', 2)]
    """
    if x is None:
        return []
    if isinstance(x, dict):
        parts = [(f"{name}/{key}", item) for key, item in x.items()]
    elif isinstance(x, tuple | list):
        parts = [(f"{name}[{i}]", item) for i, item in enumerate(x)]
    elif is_dataclass(x):
        parts = [(f"{name}.{field.name}", getattr(x, field.name)) for field in fields(x)]
    else:
        return [(name, x)]
    return [leaf for part in parts for leaf in named_leaves(*part)]
