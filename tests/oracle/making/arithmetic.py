"""Three arithmetics behind one small array module, so that one text of a formula runs in all of them.

TORCH     float64: values, and gradients by autograd; float32: the error that naive gradients have
EXACT     mpmath at 50 digits: values, and directional derivatives by differences of 1e-18
ROUNDED   every single operation rounded to float32, float16 or bfloat16: the naive computation, whose error
          sets the tolerances of low precision
"""

from __future__ import annotations

from types import SimpleNamespace

import array_api_compat.torch as torch_xp
import mpmath
import numpy as np
import torch

mpmath.mp.dps = 50


def _elementwise(function):
    lifted = np.frompyfunc(function, 1, 1)
    return lambda x: lifted(np.asarray(x, dtype=object))


EXACT = SimpleNamespace(
    exp=_elementwise(mpmath.exp),
    log=_elementwise(mpmath.log),
    sqrt=_elementwise(mpmath.sqrt),
    abs=_elementwise(abs),
    sum=lambda x, axis: np.sum(x, axis=axis),
    max=lambda x, axis, keepdims=False: np.max(x, axis=axis, keepdims=keepdims),
    stack=np.stack,
    zeros=lambda shape, like: np.full(shape, mpmath.mpf(0), dtype=object),
    asarray=lambda x, like: np.asarray(np.frompyfunc(lambda t: mpmath.mpf(float(t)), 1, 1)(x), dtype=object),
    power=lambda base, exponent: mpmath.mpf(base) ** mpmath.mpf(exponent),
    fixed=lambda x: x,
)

TORCH = SimpleNamespace(
    exp=torch.exp,
    log=torch.log,
    sqrt=torch.sqrt,
    abs=torch.abs,
    sum=lambda x, axis: torch.sum(x, dim=axis),
    max=torch_xp.max,
    stack=lambda parts, axis=0: torch.stack(list(parts), dim=axis),
    zeros=lambda shape, like: torch.zeros(shape, dtype=like.dtype),
    asarray=lambda x, like: torch.asarray(x, dtype=like.dtype),
    power=lambda base, exponent: base**exponent,
    fixed=lambda x: x.detach(),
)


class Rounded(np.ndarray):
    """Float64 numbers that are rounded to a shorter format after every operation (sums: after the whole sum)."""

    def __array_finalize__(self, source):
        self.format = getattr(source, "format", None)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        format_ = next(x.format for x in inputs if isinstance(x, Rounded))
        plain = [x.view(np.ndarray) if isinstance(x, Rounded) else x for x in inputs]
        with np.errstate(all="ignore"):
            return rounded(getattr(ufunc, method)(*plain, **options), format_)

    def __array_function__(self, function, types, args, options):
        result = super().__array_function__(function, types, args, options)
        return rounded(result, self.format) if isinstance(result, np.ndarray | np.floating) else result


def rounded(x, format_):
    """Round float64 to float32, float16 or bfloat16 and keep it as float64."""
    x = np.asarray(x)
    if x.dtype.kind != "f":
        return x
    if format_ == "bfloat16":  # a float32 without its last 16 bits, to nearest, ties to even
        bits = x.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        y = np.where(np.isfinite(x), bits.view(np.float32).astype(np.float64), x)
    else:
        with np.errstate(over="ignore"):
            y = x.astype(format_).astype(np.float64)
    y = np.asarray(y).view(Rounded)
    y.format = format_
    return y


ROUNDED = SimpleNamespace(
    exp=np.exp,
    log=np.log,
    sqrt=np.sqrt,
    abs=np.abs,
    sum=lambda x, axis: np.sum(x, axis=axis),
    max=lambda x, axis, keepdims=False: np.max(x, axis=axis, keepdims=keepdims),
    stack=np.stack,
    zeros=lambda shape, like: rounded(np.zeros(shape), like.format),
    asarray=lambda x, like: rounded(np.asarray(x, dtype=np.float64), like.format),
    power=lambda base, exponent: base**exponent,
    fixed=lambda x: x,
)
