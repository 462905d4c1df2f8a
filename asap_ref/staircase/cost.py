"""The two costs on the line, c(x, y) = -x y and (x - y)² / 2, and the slopes of a potential."""

from __future__ import annotations


def cost_of(x, y, cost):
    """c(x, y) of pairs."""
    return -x * y if cost == "bilinear" else (x - y) ** 2 / 2


def cost_slopes(x, y, cost):
    """Its derivatives in x and in y."""
    return (-y, -x) if cost == "bilinear" else (x - y, y - x)


def slopes(xs, y_below, y_above, cost):
    """Slopes of phi between sorted xs (..., n): means of dc/dx at both ends, (..., n - 1)."""
    below, above = (cost_slopes(x, y, cost)[0] for x, y in ((xs[..., :-1], y_below), (xs[..., 1:], y_above)))
    return (below + above) / 2
