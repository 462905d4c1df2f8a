"""Two judges of a hand-written VJP: central differences, and torch's autograd of an independent formula."""

from dataclasses import replace

import numpy as np
import pytest

from asap_ref import Duals
from asap_ref.support.trees import flatten, unflatten


def flat(value):
    """Outputs as a list of arrays, whether f returns one, a tuple or Duals."""
    return list(value) if isinstance(value, tuple) else [value]


def like(value, arrays):
    """Arrays in the structure of value: what vjp takes as its cotangent."""
    if isinstance(value, Duals):
        return Duals(*arrays)
    return tuple(arrays) if isinstance(value, tuple) else arrays[0]


def check_vjp(f, f_vjp, arguments, *, rtol=1e-6, h=1e-6, seed=0, same_forward=True):
    """Compare ``f_vjp`` with central differences of ``f`` along a random direction of each argument.

    In float64 the truncation error of a central difference, h² times a third derivative, and its rounding,
    1e-16 / h, are both far below rtol.
    """
    rng = np.random.default_rng(seed)
    value, vjp = f_vjp(*arguments)
    for found, expected in zip(flat(value), flat(f(*arguments)), strict=True):
        if same_forward:
            np.testing.assert_array_equal(found, expected)  # forward of f_vjp is f
        else:  # where the two are computed in different ways
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    cotangent = [rng.standard_normal(np.shape(v)) for v in flat(value)]
    gradients = vjp(like(value, cotangent))
    assert len(gradients) == len(arguments)
    for i, gradient in enumerate(gradients):
        assert gradient.shape == arguments[i].shape and gradient.dtype == arguments[i].dtype
        direction = rng.standard_normal(arguments[i].shape)

        def along(t, i=i, direction=direction):
            moved = [a + t * direction if j == i else a for j, a in enumerate(arguments)]
            return sum(np.sum(c * out) for c, out in zip(cotangent, flat(f(*moved)), strict=True))

        numeric = (along(h) - along(-h)) / (2 * h)
        scale = np.sqrt(np.sum(gradient**2))  # a direction may be nearly orthogonal to the gradient
        assert abs(np.sum(gradient * direction) - numeric) <= rtol * max(abs(numeric), scale), f"argument {i}"


def check_parameter_gradients(model, gradients, loss_of, *, atol, seed=0):
    """Compare gradients, a dict like ``model.params``, with central differences of ``loss_of(model)``."""
    rng, h = np.random.default_rng(seed), 1e-5
    flat_params, flat_gradients = flatten(model.params), flatten(gradients)
    assert list(flat_params) == list(flat_gradients)
    for key, value in flat_params.items():
        direction = rng.standard_normal(value.shape)

        def along(t, key=key, value=value, direction=direction):
            moved = unflatten({**flat_params, key: value + t * direction})
            return float(loss_of(replace(model, params=moved)))

        numeric = (along(h) - along(-h)) / (2 * h)
        np.testing.assert_allclose(
            np.sum(flat_gradients[key] * direction), numeric, rtol=1e-6, atol=atol, err_msg=key
        )


def check_against_torch(f_vjp, formula, arguments, *, rtol=1e-9, seed=0):
    """Compare value and gradients of ``f_vjp`` with torch's of ``formula``, an independent one.

    Both compute in float64; rtol is relative to the largest entry and leaves room for sums in other orders.
    """
    torch = pytest.importorskip("torch", reason="torch, the judge, is not installed: pip install asap-ref[peers]")
    rng = np.random.default_rng(seed)
    value, vjp = f_vjp(*arguments)
    tensors = [torch.tensor(a, requires_grad=True) for a in arguments]
    expected = flat(formula(torch, *tensors))
    cotangent = [rng.standard_normal(np.shape(v)) for v in flat(value)]
    for found, e in zip(flat(value), expected, strict=True):
        close(found, e.detach().numpy(), rtol)
    total = sum((torch.tensor(c) * e).sum() for c, e in zip(cotangent, expected, strict=True))
    for gradient, tensor in zip(vjp(like(value, cotangent)), torch.autograd.grad(total, tensors), strict=True):
        close(gradient, tensor.numpy(), rtol)


def close(found, expected, rtol):
    """Equal up to rtol of the largest entry: plans and gradients have many entries that are nearly zero."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * max(np.abs(expected).max(initial=0), 1e-300))
