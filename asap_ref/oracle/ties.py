"""Where a result hangs on a rounding: levels of weights that nearly meet, samples that nearly attain a minimum.

1D potentials choose: a slope by comparing two running sums, psi by taking a minimum. Where the two sides of such a
choice agree to within a rounding, either answer is right, and a drawn case does not ask.
"""

from __future__ import annotations

import numpy as np

LEVELS = 2.0**-18  # running sums of some hundred weights in float32 are exact to this share of their total
MINIMA = 2.0**-21  # costs less potentials in float32, over the largest of either
EXACT = 1e-11  # samples that share a piece of mass attain the minimum together, with the same gradient


def distinct(x, redrawn, tries=100):
    """Draw again what is equal along the last axis: which of two equal samples comes first, gradients would show."""
    for _ in range(tries):
        order = np.argsort(x, axis=-1, kind="stable")
        ranked = np.take_along_axis(x, order, axis=-1)
        again = np.zeros(x.shape, bool)
        np.put_along_axis(again, order[..., 1:], ranked[..., 1:] == ranked[..., :-1], axis=-1)
        if not again.any():
            break
        x = x.copy()
        x[again] = redrawn(int(again.sum()))
    return x


def levels_nearly_meet(x, y, a, b):
    """Whether two levels, running sums of the weights a (n) by x and b (m) by y, differ by next to nothing."""
    A, B = (
        np.cumsum(weights[np.argsort(z, kind="stable")])[:-1] / weights.sum() for z, weights in ((x, a), (y, b))
    )
    if not A.size or not B.size:
        return False
    at = np.searchsorted(B, A)
    gaps = [np.abs(A - B[np.clip(at + step, 0, B.size - 1)]) for step in (-1, 0)]
    return bool(np.minimum(*gaps).min() < LEVELS)


def keep_levels_apart(arrays, side, x_valid, y_valid, redrawn, tries=100):
    """Draw the weights of one side ("x" or "y") again, in place, wherever levels nearly meet.

    From some thousand samples on each side on they always do.
    """
    unweighted = {"x": x_valid * 1.0, "y": y_valid * 1.0}
    for index in np.ndindex(x_valid.shape[:-1]):
        valid = {"x": x_valid[index], "y": y_valid[index]}
        weights = {
            name: arrays.get(f"{name}_weights", unweighted[name])[index][valid[name]] for name in unweighted
        }
        x, y = (arrays[name][index][valid[name]] for name in "xy")
        for _ in range(tries if x.size and y.size else 0):
            if not levels_nearly_meet(x, y, weights["x"], weights["y"]):
                break
            weights[side] = redrawn(weights[side].shape)
            arrays[f"{side}_weights"][index][valid[side]] = weights[side]


def minimum_nearly_tied(x, y, phi, x_valid, y_valid, cost):
    """Where psi_j = min_i c(x_i, y_j) - phi_i is attained by two samples but for a rounding: (..., m)."""
    x, y = np.where(x_valid, x, 0)[..., :, None], np.where(y_valid, y, 0)[..., None, :]
    pairs = -x * y if cost == "bilinear" else (x - y) ** 2 / 2
    gaps = np.where(x_valid[..., :, None], pairs - phi[..., :, None], np.inf)
    above = gaps - gaps.min(-2, keepdims=True, initial=1e300)
    size = np.maximum(np.abs(pairs).max((-2, -1), keepdims=True), np.abs(phi).max(-1)[..., None, None])
    return np.any((above > EXACT * size) & (above < MINIMA * size), axis=-2)


def unasked(operator, inputs, outputs, arguments):
    """Entries of outputs whose gradient a rounding decides: their cotangents are zero."""
    if operator == "kantorovich_potentials_1d":
        x, y, names, cost = inputs["x"], inputs["y"], ("x_mask", "y_mask"), arguments["cost"]
        valid = [inputs.get(name, np.asarray(True)) for name in names]
    elif operator == "sliced_potentials":
        x, y = (
            (inputs["directions"].mT @ inputs[name].mT) * inputs[name].shape[-1] ** -0.25 for name in ("q", "k")
        )
        names, cost = ("query_mask", "key_mask"), "bilinear"
        valid = [inputs[name][..., None, :] if name in inputs else np.asarray(True) for name in names]
    else:
        return {}
    x_valid, y_valid = (np.broadcast_to(mask, z.shape) for mask, z in zip(valid, (x, y), strict=True))
    return {"psi": minimum_nearly_tied(x, y, outputs["phi"], x_valid, y_valid, cost)}
