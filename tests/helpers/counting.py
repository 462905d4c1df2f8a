"""An array module that counts: how many kernels a GPU would launch, and how often the host would wait for it.

It is array_api_strict with a counter around it, so what runs here is within the standard as well. Three things
are counted, since they are what makes array code slow on a GPU whatever the card:

launches    calls that compute a new array; views (reshape, slices, transposes) are free, what `one_pass` fuses is one
waits       conversions of an array to a Python bool, int or float: the host waits for all that was launched
transfers   arrays that move between host and device
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import array_api_strict
import numpy as np

VIEWS = {"reshape", "permute_dims", "expand_dims", "squeeze", "broadcast_to", "matrix_transpose", "unstack"}
VIEWS |= {"isdtype", "result_type", "can_cast", "finfo", "iinfo", "__getitem__"}
MAKERS = {"asarray", "from_dlpack"}
UNARY = ("neg", "pos", "abs", "invert")
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
OTHERS = ("lt", "le", "gt", "ge", "eq", "ne", "getitem", *(f"r{name}" for name in BINARY))

counts = Counter()  # by kind; and by name of what was launched, as ("launch", name)


@contextmanager
def counted():
    """Count what happens inside: a Counter with "launches", "waits" and "transfers"."""
    counts.clear()
    found = Counter()
    yield found
    found.update(counts)


def count(name):
    """Count a call by its name."""
    if name not in VIEWS:
        counts["launches"] += 1
        counts["launch", name] += 1


def unwrap(x):
    """Arrays of array_api_strict, inside tuples and lists too."""
    if isinstance(x, Array):
        return x.inner
    return type(x)(map(unwrap, x)) if type(x) in (tuple, list) else x


def wrap(x):
    """Results as counting arrays."""
    if type(x) is tuple:
        return tuple(map(wrap, x))
    return Array(x) if type(x) is type(ONE) else x


ONE = array_api_strict.asarray(1.0)


class Array:
    """An array of array_api_strict whose operators are counted."""

    __hash__ = None

    def __init__(self, inner):
        self.inner = inner

    def __array_namespace__(self, api_version=None):
        return NAMESPACE

    def __array__(self, dtype=None, copy=None):  # only to_numpy asks for it
        counts["transfers"] += 1
        return np.asarray(self.inner, dtype=dtype)

    def __getattr__(self, name):  # shape, dtype, device, ndim, size, T, mT
        return wrap(getattr(object.__getattribute__(self, "inner"), name))

    def _to_host(self, convert):
        counts["waits"] += 1
        return convert(self.inner)

    def __bool__(self):
        return self._to_host(bool)

    def __float__(self):
        return self._to_host(float)

    def __int__(self):
        return self._to_host(int)

    def __index__(self):
        return self._to_host(int)


def _operator(name):
    def forward(self, *others):
        count(name)
        return wrap(getattr(self.inner, name)(*map(unwrap, others)))

    return forward


for _name in (*UNARY, *BINARY, *OTHERS):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))


class Namespace:
    """array_api_strict with every call counted; what is fused counts as one."""

    __name__ = "counting"

    def fuse(self, function):
        def fused(*arrays):
            before = counts.copy()
            result = function(*arrays)
            counts.clear()
            counts.update(before)
            count(function.__name__)
            return result

        return fused

    def __getattr__(self, name):
        found = getattr(array_api_strict, name)
        if not callable(found) or isinstance(found, type):  # a constant, a dtype, Device
            return found

        def forward(*args, **kwargs):
            moved = name in MAKERS and args and not isinstance(args[0], Array)
            counts["transfers"] += moved and not isinstance(args[0], int | float | bool)
            if not (name in MAKERS and not moved):  # asarray of an array that is there already is free
                count(name)
            return wrap(found(*map(unwrap, args), **{key: unwrap(x) for key, x in kwargs.items()}))

        return forward


NAMESPACE = Namespace()
