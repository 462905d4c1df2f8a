"""A hidden layer beside the linear map: the amortizer as a multilayer perceptron (derived; an option).

    f_hat = Phiᵀ w + aᵀ u,    a = tanh(W x + b) centred over the tokens of its sequence,    x the first F' of Phi

Given W and b, the units a are features like the others, and (w, u) is a ridge regression on all of them. With u = 0
it is the linear map, so the regression with hidden units is never worse than the one without. W and b are trained on
what the linear map leaves, r = f - Phiᵀ w, from u = 0 on: head by head, by L-BFGS on

    loss(W, b, u) = |r - aᵀ u|² / |r|² + PULL / 2 (|W|² + |u|²),    x scaled to a mean square of one.

Shapes: features (..., H, F, n), W (H, U, F'), b (H, U), units (..., H, U, n). In training a head's N valid tokens
stand in a row: x (F', N), r (N,), and sequence (N,), which says to which sequence each belongs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from asap_ref.method.masks import centred
from asap_ref.support.arrays import array_namespace, transpose

PULL = 1e-5  # a small penalty: tokens are many, but some units may have nothing to do


class Hidden(NamedTuple):
    """Weights W (H, U, F') and biases b (H, U) of the hidden layer of each head."""

    weight: Any
    bias: Any


def hidden_units(features, hidden, *, mask=None):
    """Units of the hidden layer, centred over the valid tokens: (..., H, F, n) -> (..., H, U, n).

    Examples
    --------
    >>> hidden_units(np.ones((1, 2, 3)), Hidden(np.ones((1, 4, 2)), np.zeros((1, 4)))).shape
    (1, 4, 3)
    """
    return hidden_units_vjp(features, hidden, mask=mask)[0]


def hidden_units_vjp(features, hidden, *, mask=None):
    """Hidden units and their VJP, ``vjp(d_units) -> (d_features,)``; the layer itself is held fixed.

    Examples
    --------
    >>> units, vjp = hidden_units_vjp(np.ones((1, 2, 3)), Hidden(np.ones((1, 4, 2)), np.zeros((1, 4))))
    >>> vjp(units)[0].shape
    (1, 2, 3)
    """
    check_hidden(features, hidden)
    xp = array_namespace(features, hidden.weight)
    W, b = hidden
    of_units = mask if mask is None else mask[..., None, :]
    used = W.shape[-1]
    t = xp.tanh(W @ features[..., :used, :] + b[..., None])

    def vjp(d_units):
        d_x = transpose(W) @ (centred(d_units, of_units) * (1 - t * t))
        return (xp.concat([d_x, xp.zeros_like(features[..., used:, :])], axis=-2),)

    return centred(t, of_units), vjp


def check_hidden(features, hidden):
    """Raise ValueError unless the layer fits the features (..., H, F, n)."""
    (H, F), W, b = features.shape[-3:-1], *hidden
    if W.ndim != 3 or W.shape[0] != H or W.shape[-1] > F or tuple(b.shape) != tuple(W.shape[:2]):
        raise ValueError(
            f"hidden has weight {tuple(W.shape)} and bias {tuple(b.shape)}, expected (H, U, F') and (H, U) with "
            f"H = {H} and F' at most {F}"
        )


# ---------------------------------------------------------------------------------------------------- training


def train_hidden(parts, units, *, seed, max_iter):
    """Train the hidden layers of all heads on the residuals of a linear map.

    Parameters
    ----------
    parts : list of (features (B, H, F', n), residual (B, H, n), mask or None)
        The calibration data; NumPy. All of it stays in memory.
    units : int
        U, the width of the layer.
    seed : int
        Of the weights it starts from.
    max_iter : int
        L-BFGS iterations.

    Returns
    -------
    Hidden

    Notes
    -----
    O(N U F') an iteration and head.
    """
    layers = [_train_head(*_of_head(parts, h), units, seed + h, max_iter) for h in range(parts[0][0].shape[-3])]
    return Hidden(*(np.stack(arrays) for arrays in zip(*layers, strict=True)))


def _of_head(parts, h):
    """Valid tokens of one head in a row: x (F', N), r (N,), sequence (N,)."""
    xs, rs, sequences, before = [], [], [], 0
    for x, r, mask in parts:
        x, r = (
            x[..., h, :, :].reshape(-1, *x.shape[-2:]),
            r[..., h, :].reshape(-1, r.shape[-1]),
        )  # (B, F', n), (B, n)
        valid = np.ones(r.shape, bool) if mask is None else mask[..., h, :].reshape(r.shape)
        xs.append(np.moveaxis(x, -2, 0)[:, valid])
        rs.append(r[valid])
        sequences.append(before + np.nonzero(valid)[0])
        before += len(r)
    return np.concatenate(xs, axis=-1), np.concatenate(rs), np.concatenate(sequences)


def _train_head(x, r, sequence, units, seed, max_iter):
    """W (U, F') and b (U,) of one head."""
    rng, used = np.random.default_rng(seed), len(x)
    size = np.sqrt(np.maximum(np.mean(x * x, axis=-1), np.finfo(float).tiny))
    shapes = (units, used), (units,), (units,)
    start = rng.standard_normal((units, used)) / np.sqrt(used), rng.standard_normal(units) / 2, np.zeros(units)
    x = x / size[:, None]

    def evaluate(flat):
        loss, gradients = loss_and_gradients(*_unpacked(flat, shapes), x, r, sequence)
        return loss, np.concatenate([d.ravel() for d in gradients])

    flat = np.concatenate([p.ravel() for p in start])
    found = minimize(evaluate, flat, jac=True, method="L-BFGS-B", options={"maxiter": max_iter})
    W, b, _ = _unpacked(found.x, shapes)
    return W / size, b


def loss_and_gradients(W, b, u, x, r, sequence):
    """Loss of one head, see the top of the module, and its gradients (dW, db, du).

    Examples
    --------
    >>> x, r, sequence = np.ones((2, 3)), np.asarray([1.0, -1.0, 0.0]), np.zeros(3, int)
    >>> float(loss_and_gradients(np.zeros((4, 2)), np.zeros(4), np.zeros(4), x, r, sequence)[0])
    1.0
    """
    t = W @ x
    t += b[:, None]
    np.tanh(t, out=t)  # (U, N)
    difference = _centred_by(sequence, u @ t) - r  # centring aᵀ u is centring a
    square = max(r @ r, np.finfo(float).tiny)
    loss = difference @ difference / square + PULL / 2 * (np.sum(W * W) + np.sum(u * u))
    d_sum = _centred_by(sequence, 2 / square * difference)  # (N,), in u @ t
    du = t @ d_sum + PULL * u
    t *= t
    np.subtract(1, t, out=t)
    t *= u[:, None]
    t *= d_sum  # now the gradient in W x + b
    return loss, (t @ x.T + PULL * W, np.sum(t, axis=-1), du)


def _centred_by(sequence, x):
    """Take from each token of x (N,) the mean over its sequence."""
    count = np.maximum(np.bincount(sequence), 1)
    return x - (np.bincount(sequence, x) / count)[sequence]


def _unpacked(flat, shapes):
    """Cut a flat vector into arrays of these shapes."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
