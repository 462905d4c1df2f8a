"""Answers of the formulas to whole cases: padding cut away, problem by problem, zeros put back.

Padding is invisible here by construction: a masked problem is computed as a smaller one.
"""

from __future__ import annotations

import formulas
import mpmath
import numpy as np
import torch
from arithmetic import EXACT, ROUNDED, TORCH, rounded

# trailing axes of each input and output: n is cut by the query mask, m by the key mask; "shared" goes to all
AXES = {
    "attention_scores": ({"q": "n d", "k": "m d"}, ["n m"]),
    "entropic_c_transform": ({"scores": "n m", "dual": None}, [None]),
    "lse": ({"q": "n d", "k": "m d", "query_dual": "n"}, ["m"]),
    "attend": ({"q": "n d", "k": "m d", "v": "m p", "key_dual": "m"}, ["n p"]),
    "two_sided_c_transform": ({"scores": "n m", "query_dual": "n"}, ["n", "m"]),
    "transport_plan": ({"scores": "n m", "query_dual": "n", "key_dual": "m"}, ["n m"]),
    "sinkhorn": ({"scores": "n m", "init": "n"}, ["n", "m"]),
    "kl_loss": ({"scores": "n m", "query_dual": "n", "teacher_columns": "m"}, [""]),
    "dual_loss": ({"scores": "n m", "query_dual": "n"}, [""]),
    "marginal_error": ({"plan": "n m"}, ["", ""]),
    "kantorovich_potentials_1d": ({"x": "n", "y": "m", "x_weights": "n", "y_weights": "m"}, ["n", "m"]),
    "sliced_attention": ({"q": "n d", "k": "m d", "v": "m p", "directions": "shared"}, ["n p"]),
    "sliced_potentials": ({"q": "n d", "k": "m d", "directions": "shared"}, ["l n", "l m"]),
    "cumulant_features": ({"q": "n d", "k": "m d"}, ["l n"]),
    "quadratic_features": ({"q": "n d", "k": "m d", "basis": "shared"}, ["l n"]),
    "moment_features": ({"q": "n d", "k": "m d", "basis": "shared"}, ["l n"]),
    "dual_features": ({"q": "n d", "k": "m d", "directions": "shared", "basis": "shared"}, ["l n"]),
    "amortized_query_dual": (
        {"q": "n d", "k": "m d", "directions": "shared", "weights": "head", "basis": "shared"},
        ["n"],
    ),
    "softmax_attention": ({"q": "n d", "k": "m d", "v": "m p"}, ["n p"]),
    "sinkhorn_attention": ({"q": "n d", "k": "m d", "v": "m p"}, ["n p"]),
    "asap_attention": (
        {"q": "n d", "k": "m d", "v": "m p", "directions": "shared", "weights": "head", "basis": "shared"},
        ["n p"],
    ),
}
MASKS = {"query_mask": "n", "key_mask": "m", "x_mask": "n", "y_mask": "m"}


def axes(operator, arguments):
    inputs, outputs = AXES[operator]
    if operator == "entropic_c_transform":
        known, other = ("n", "m") if arguments["onto"] == "key" else ("m", "n")
        return {**inputs, "dual": known}, [other]
    return inputs, outputs


def solve(operator, xp, inputs, arguments):
    """Outputs, by the formula, of a batch of problems: inputs are arrays of xp, masks NumPy booleans."""
    formula = getattr(formulas, operator)
    in_axes, out_axes = axes(operator, arguments)
    masks = {MASKS[name]: x for name, x in inputs.items() if name in MASKS}
    arrays = {name: x for name, x in inputs.items() if name not in MASKS}
    first = next(iter(arrays))
    leading = tuple(arrays[first].shape[: arrays[first].ndim - len(in_axes[first].split())])
    sizes = {}
    for name, x in arrays.items():
        named = in_axes[name].split()
        if named not in (["shared"], ["head"]):
            sizes |= dict(zip(named, x.shape[x.ndim - len(named) :], strict=True))
    problems = []
    for index in np.ndindex(leading):
        kept = {
            axis: np.flatnonzero(np.broadcast_to(mask, (*leading, mask.shape[-1]))[index]).tolist()
            for axis, mask in masks.items()
        }
        one = {}
        for name, x in arrays.items():
            named = in_axes[name].split()
            if named == ["shared"]:
                one[name] = x[index[-1]] if x.ndim == 3 else x  # a head's own, or shared by all
            elif named == ["head"]:
                one[name] = x[index[-1]]
            else:
                one[name] = cut(x[index], named, kept)
        if all(kept.get(axis, [0]) for axis in "nm"):
            found = formula(xp, **one, **arguments)
            found = [np.asarray(y, dtype=object) for y in found] if xp is EXACT else found  # a lone number too
            problems.append(
                [put_back(xp, y, a.split(), kept, sizes) for y, a in zip(found, out_axes, strict=True)]
            )
        else:
            problems.append(None)  # no valid token on one side: zeros
    shapes = next(([tuple(y.shape) for y in p] for p in problems if p is not None), None)
    if shapes is None:
        shapes = [tuple(sizes[a] for a in out.split()) for out in out_axes]
    like = arrays[first]
    filled = [[xp.zeros(s, like) for s in shapes] if p is None else p for p in problems]
    return tuple(
        xp.stack([p[i] for p in filled]).reshape(*leading, *shape) if leading else filled[0][i]
        for i, shape in enumerate(shapes)
    )


def cut(x, named, kept):
    for position, axis in enumerate(named):
        if axis in kept:
            x = x[(slice(None),) * position + (kept[axis],)]
    return x


def put_back(xp, x, named, kept, sizes):
    """Zeros at what was cut, by a product with a selection of rows of the identity."""
    for position, axis in enumerate(named):
        if axis in kept:
            rows = [x[(slice(None),) * position + (i,)] for i in range(len(kept[axis]))]
            zero = 0 * rows[0]
            place = dict(zip(kept[axis], rows, strict=True))
            x = xp.stack([place.get(j, zero) for j in range(sizes[axis])], axis=position)
    return x


# ------------------------------------------------------------------------------------------------- the three answers


def in_torch(operator, inputs, arguments, wanted, cotangents, dtype=torch.float64):
    """(outputs, gradients by name), by autograd."""
    tensors = {
        name: x if x.dtype == bool else torch.tensor(x, dtype=dtype, requires_grad=name in wanted)
        for name, x in inputs.items()
    }
    outputs = solve(operator, TORCH, tensors, arguments)
    gradients = {}
    if cotangents:
        total = sum((torch.tensor(c, dtype=dtype) * y).sum() for c, y in zip(cotangents, outputs, strict=True))
        leaves = [tensors[name] for name in wanted]
        found = [None] * len(leaves)
        if total.requires_grad:
            found = torch.autograd.grad(total, leaves, allow_unused=True)
        gradients = {
            name: np.zeros(x.shape) if g is None else g.double().numpy()
            for name, g, x in zip(wanted, found, leaves, strict=True)
        }
    return [y.detach().double().numpy() for y in outputs], gradients


def in_fifty_digits(operator, inputs, arguments):
    """Outputs as object arrays of mpmath numbers."""
    exact = {name: x if x.dtype == bool else EXACT.asarray(x, None) for name, x in inputs.items()}
    arguments = {k: mpmath.mpf(a) if isinstance(a, float) else a for k, a in arguments.items()}
    return [np.asarray(y, dtype=object) for y in solve(operator, EXACT, exact, arguments)]


def derivative_in_fifty_digits(operator, inputs, arguments, directions, cotangents):
    """d/dt of the sum of cotangent times output along the directions, by a central difference of 1e-18."""
    arguments = {k: mpmath.mpf(a) if isinstance(a, float) else a for k, a in arguments.items()}
    h = mpmath.mpf(10) ** -18
    totals = []
    for sign in (1, -1):
        moved = {}
        for name, x in inputs.items():
            moved[name] = x if x.dtype == bool else EXACT.asarray(x, None)
            if name in directions:
                moved[name] = moved[name] + sign * h * EXACT.asarray(directions[name], None)
        outputs = solve(operator, EXACT, moved, arguments)
        totals.append(sum(np.sum(EXACT.asarray(c, None) * y) for c, y in zip(cotangents, outputs, strict=True)))
    return float((totals[0] - totals[1]) / (2 * h))


def naively_in(format_, operator, inputs, arguments):
    """Outputs of the same formula with every operation rounded to the format."""
    short = {name: x if x.dtype == bool else rounded(x, format_) for name, x in inputs.items()}
    return [np.asarray(y, dtype=np.float64) for y in solve(operator, ROUNDED, short, arguments)]
