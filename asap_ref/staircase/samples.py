"""A sample on the line, sorted, with padding last and weights that sum to one.

Shapes: x (..., n), y (..., m).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from asap_ref.support.arrays import array_namespace
from asap_ref.support.masks import keep


class Side(NamedTuple):
    """One sample, sorted, padding last."""

    values: Any  # (..., n) ascending, 0 at padding
    valid: Any  # (..., n) boolean
    count: Any  # (..., 1) integer: n'
    weights: Any  # (..., n), 0 at padding
    share: Any  # (..., n) weights that sum to 1
    order: Any  # (..., n) where each sorted value came from
    rank: Any  # (..., n) where each input value went


def sides(x, y, x_weights, y_weights, x_mask, y_mask):
    """Both samples as a `Side`; weights and masks may be None, or lack leading axes."""
    xp = array_namespace(x, y)
    _check_weights("x_weights", x_weights, x_mask)
    _check_weights("y_weights", y_weights, y_mask)

    def spread(given, like):
        """Broadcast what may lack leading axes; where nothing is given, every sample counts, and alike."""
        return xp.ones_like(like) if given is None else xp.broadcast_to(given, like.shape)

    x_valid, y_valid = (spread(mask, like=xp.isnan(z) | True) for z, mask in ((x, x_mask), (y, y_mask)))
    # a side without tokens leaves the other nothing to meet
    x_valid, y_valid = (
        x_valid & xp.any(y_valid, axis=-1, keepdims=True),
        y_valid & xp.any(x_valid, axis=-1, keepdims=True),
    )
    return _side(x, x_valid, spread(x_weights, x)), _side(y, y_valid, spread(y_weights, y))


def _check_weights(name, weights, mask):
    if weights is None:
        return
    xp, weights = array_namespace(weights), keep(weights, mask)
    total = xp.sum(weights, axis=-1)
    if not bool(xp.all(weights >= 0) & xp.all(xp.isfinite(total))):
        raise ValueError(
            f"kantorovich_potentials_1d: {name} must be finite and at least 0, and so their sum, got {weights}"
        )
    empty = total == 0
    if bool(xp.any(empty if mask is None else empty & xp.any(mask, axis=-1))):
        raise ValueError(f"kantorovich_potentials_1d: {name} must not sum to zero, got {weights}")


def _side(x, valid, weights):
    xp = array_namespace(x)
    x, weights = keep(x, valid), keep(weights, valid)
    order = xp.argsort(x, axis=-1, stable=True)
    padding = xp.astype(~xp.take_along_axis(valid, order, axis=-1), xp.uint8)
    order = xp.take_along_axis(order, xp.argsort(padding, axis=-1, stable=True), axis=-1)
    values, valid, weights = (xp.take_along_axis(z, order, axis=-1) for z in (x, valid, weights))
    total = xp.sum(weights, axis=-1, keepdims=True)
    share = weights / xp.where(total > 0, total, xp.ones_like(total))
    count = xp.sum(xp.astype(valid, order.dtype), axis=-1, keepdims=True)
    return Side(values, valid, count, weights, share, order, xp.argsort(order, axis=-1))


def unsorted(x, side):
    """Back in the order of the input, zero at padding."""
    xp = array_namespace(x)
    return xp.take_along_axis(keep(x, side.valid), side.rank, axis=-1)
