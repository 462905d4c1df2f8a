"""The layers of a Transformer that are not attention, each forward beside its backward, by hand.

Every ``f_vjp(...)`` returns (value, vjp) and vjp(d_out) one gradient per array argument, in order. Shapes: x is
(..., a) with any leading axes; the derivations are one line each and stand where they are used.
"""

from __future__ import annotations

import math

from asap_ref.support.arrays import array_namespace, as_indices, logsumexp
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.settings import check_positive

# ---------------------------------------------------------------------------------------------------- linear


@operator
def linear(x: "... a", weight: "a b", bias: "b"):
    """Affine map ``x W + b`` -> (..., b). O(N a b) for N rows.

    Examples
    --------
    >>> import numpy as np
    >>> linear(np.ones((1, 2)), np.eye(2), np.asarray([0.0, 1.0]))
    array([[1., 2.]])
    """
    return _rows_times(x, weight) + bias


@vjp_of(linear)
def linear_vjp(x, weight, bias):
    """Affine map and its VJP, ``vjp(d_out) -> (dx, d_weight, d_bias)``.

    Examples
    --------
    >>> import numpy as np
    >>> out, vjp = linear_vjp(np.ones((3, 2)), np.eye(2), np.zeros(2))
    >>> vjp(out)[2]
    array([3., 3.])
    """
    xp = array_namespace(x, weight, bias)

    def vjp(d_out):
        rows_x = xp.reshape(x, (-1, x.shape[-1]))  # (N, a)
        rows_d = xp.reshape(d_out, (-1, d_out.shape[-1]))  # (N, b)
        return _rows_times(d_out, weight.T), rows_x.T @ rows_d, xp.sum(rows_d, axis=0)

    return _rows_times(x, weight) + bias, vjp


def _rows_times(x, weight):
    """``x @ weight`` as one matrix product: NumPy makes one, smaller and slower, of each leading index."""
    xp = array_namespace(x)
    return xp.reshape(xp.reshape(x, (-1, x.shape[-1])) @ weight, (*x.shape[:-1], weight.shape[1]))


# ------------------------------------------------------------------------------------------------ layer norm


@operator
def layer_norm(x: "... a", gain: "a", bias: "a", *, eps=1e-05):
    """Normalise each row to mean 0 and variance 1, then ``* gain + bias`` -> (..., a).

    O(N a). Source: Ba et al. 2016.

    Examples
    --------
    >>> import numpy as np
    >>> layer_norm(np.asarray([[1.0, 3.0]]), np.ones(2), np.zeros(2)).round(3)
    array([[-1.,  1.]])
    """
    check_positive(eps, "eps", "layer_norm", or_zero=True)
    z, _ = _standardise(x, eps)
    return z * gain + bias


@vjp_of(layer_norm)
def layer_norm_vjp(x, gain, bias, *, eps=1e-05):
    """Layer norm and its VJP, ``vjp(d_out) -> (dx, d_gain, d_bias)``.

    The output does not change when a row is shifted or scaled, so dx has no component along the ones and
    (up to eps) none along z: both are projected out.

    Examples
    --------
    >>> import numpy as np
    >>> out, vjp = layer_norm_vjp(np.asarray([[1.0, 3.0, 0.0]]), np.ones(3), np.zeros(3))
    >>> bool(abs(vjp(np.asarray([[1.0, 0.0, 0.0]]))[0].sum()) < 1e-12)
    True
    """
    check_positive(eps, "eps", "layer_norm", or_zero=True)
    xp = array_namespace(x, gain, bias)
    z, inverse_deviation = _standardise(x, eps)

    def vjp(d_out):
        rows = tuple(range(d_out.ndim - 1))
        dz = d_out * gain
        along_ones = xp.mean(dz, axis=-1, keepdims=True)
        along_z = xp.mean(dz * z, axis=-1, keepdims=True)
        dx = (dz - along_ones - along_z * z) * inverse_deviation
        return dx, xp.sum(d_out * z, axis=rows), xp.sum(d_out, axis=rows)

    return z * gain + bias, vjp


def _standardise(x, eps):
    xp = array_namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True) + eps
    # NaN, and not zero, where the variance overflows
    inverse_deviation = 1 / xp.sqrt(variance) + 0 * variance
    return centred * inverse_deviation, inverse_deviation


# ------------------------------------------------------------------------------------------------------ GELU

_GELU_SCALE, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


@operator
def gelu(x: "... a"):
    """Gaussian error linear unit in its tanh form: the array API has no erf. Elementwise, O(N).

    Source: Hendrycks & Gimpel 2016, section 2; within 5e-4 of the exact x Phi(x).

    Examples
    --------
    >>> import numpy as np
    >>> gelu(np.asarray([-10.0, 0.0, 1.0])).round(4)
    array([-0.    ,  0.    ,  0.8412])
    """
    t = _gelu_tanh(x)
    return 0.5 * x * (1 + t)


@vjp_of(gelu)
def gelu_vjp(x):
    """GELU and its VJP, ``vjp(d_out) -> (dx,)``.

    Examples
    --------
    >>> import numpy as np
    >>> out, vjp = gelu_vjp(np.zeros(1))
    >>> vjp(np.ones(1))
    (array([0.5]),)
    """
    t = _gelu_tanh(x)

    def vjp(d_out):
        d_inner = _GELU_SCALE + 3 * _GELU_SCALE * _GELU_CUBIC * (x * x)
        return (d_out * ((0.5 + 0.5 * t) * (1 + x * (1 - t) * d_inner)),)  # 1 - t² = (1 + t) (1 - t)

    return 0.5 * x * (1 + t), vjp


def _gelu_tanh(x):
    return array_namespace(x).tanh(x * (_GELU_SCALE + _GELU_SCALE * _GELU_CUBIC * (x * x)))


# ------------------------------------------------------------------------------------------------------- MLP


def mlp(x, params):
    """Two linear maps with a GELU between: (..., a) -> (..., a). Params: {"up": {...}, "down": {...}}."""
    return linear(gelu(linear(x, **params["up"])), **params["down"])


def mlp_vjp(x, params):
    """MLP and its VJP, ``vjp(d_out) -> (dx, d_params)``, d_params a dict like params."""
    h, up_vjp = linear_vjp(x, **params["up"])
    a, gelu_backward = gelu_vjp(h)
    out, down_vjp = linear_vjp(a, **params["down"])

    def vjp(d_out):
        da, *d_down = down_vjp(d_out)
        (dh,) = gelu_backward(da)
        dx, *d_up = up_vjp(dh)
        return dx, {"up": named(d_up, "weight", "bias"), "down": named(d_down, "weight", "bias")}

    return out, vjp


def named(values, *names):
    """Gradients back under the names of their parameters."""
    return dict(zip(names, values, strict=True))


# --------------------------------------------------------------------------------------------- cross-entropy


@operator
def cross_entropy(logits: "N C", labels):
    """Mean negative log-likelihood of integer labels: (N, C), (N,) -> 0-d array; arguments as below. O(N C)."""
    return cross_entropy_vjp(logits, labels)[0]


@vjp_of(cross_entropy)
def cross_entropy_vjp(logits, labels):
    """Cross-entropy and its VJP, ``vjp(d_loss) -> (d_logits,)``: softmax minus one-hot, over N.

    Parameters
    ----------
    logits : array (N, C)
    labels : integer array (N,)
        From 0 to C - 1.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, labels are not integers or out of range, or logits are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> loss, vjp = cross_entropy_vjp(np.zeros((1, 2)), np.asarray([0]))
    >>> round(float(loss), 4), vjp(1.0)[0]
    (0.6931, array([[-0.5,  0.5]]))
    """
    xp = array_namespace(logits, labels)
    if tuple(labels.shape) != (logits.shape[0],):
        raise ValueError(
            f"cross_entropy: expected logits (N, C) and labels (N,), got {tuple(logits.shape)} "
            f"and {tuple(labels.shape)}"
        )
    if not xp.isdtype(labels.dtype, "integral"):
        raise TypeError(f"cross_entropy: labels must be integers, got {labels.dtype}")
    labels = as_indices(labels)
    n, n_classes = logits.shape
    if bool(xp.any((labels < 0) | (labels >= n_classes))):
        raise ValueError(f"cross_entropy: labels must lie from 0 to {n_classes - 1}, the classes of the logits")
    one_hot = xp.astype(
        labels[:, None] == xp.arange(n_classes, dtype=labels.dtype, device=logits.device), logits.dtype
    )
    log_p = logits - logsumexp(logits, axis=-1)[:, None]
    loss = -xp.sum(one_hot * log_p) / n
    return loss, lambda d_loss: (d_loss * (xp.exp(log_p) - one_hot) / n,)
