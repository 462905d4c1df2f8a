"""Layers against central differences, torch, and what they must satisfy by construction."""

import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.metrics import log_loss
from tallies import CALLS, refused

from asap_ref.model import layers

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 3, 5))
GAIN, BIAS = 1 + 0.1 * rng.standard_normal(5), rng.standard_normal(5)
W, B = rng.standard_normal((5, 4)), rng.standard_normal(4)
LABELS = np.asarray([0, 3, 1])

CASES = {
    "linear": (layers.linear, layers.linear_vjp, (X, W, B)),
    "layer_norm": (layers.layer_norm, layers.layer_norm_vjp, (X, GAIN, BIAS)),
    "gelu": (layers.gelu, layers.gelu_vjp, (3 * X,)),
    "cross_entropy": (
        lambda z: layers.cross_entropy(z, LABELS),
        lambda z: layers.cross_entropy_vjp(z, LABELS),
        (rng.standard_normal((3, 4)),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_vjp_is_the_derivative(name):
    f, f_vjp, arguments = CASES[name]
    value, vjp = f_vjp(*arguments)
    np.testing.assert_array_equal(value, f(*arguments))
    cotangent = rng.standard_normal(np.shape(value))[()]
    for i, gradient in enumerate(vjp(cotangent)):
        direction, h = rng.standard_normal(arguments[i].shape), 1e-5

        def along(t, i=i, direction=direction):
            moved = [a + t * direction if j == i else a for j, a in enumerate(arguments)]
            return np.sum(cotangent * f(*moved))

        # central differences: truncation h² and rounding 1e-16 / h are both near 1e-10
        np.testing.assert_allclose(np.sum(gradient * direction), (along(h) - along(-h)) / (2 * h), rtol=1e-7)


def test_mlp_vjp_is_the_derivative():
    params = {
        "up": {"weight": rng.standard_normal((5, 7)), "bias": rng.standard_normal(7)},
        "down": {"weight": rng.standard_normal((7, 5)), "bias": rng.standard_normal(5)},
    }
    out, vjp = layers.mlp_vjp(X, params)
    np.testing.assert_array_equal(out, layers.mlp(X, params))
    cotangent = rng.standard_normal(out.shape)
    dx, d_params = vjp(cotangent)
    h, direction = 1e-5, rng.standard_normal((5, 7))

    def along(t):
        moved = {**params, "up": {**params["up"], "weight": params["up"]["weight"] + t * direction}}
        return np.sum(cotangent * layers.mlp(X, moved))

    numeric = (along(h) - along(-h)) / (2 * h)
    np.testing.assert_allclose(np.sum(d_params["up"]["weight"] * direction), numeric, rtol=1e-7)
    numeric = np.sum(cotangent * (layers.mlp(X + h * X, params) - layers.mlp(X - h * X, params))) / (2 * h)
    np.testing.assert_allclose(np.sum(dx * X), numeric, rtol=1e-7)


def test_layer_norm_has_mean_zero_and_variance_one():
    z = layers.layer_norm(X, np.ones(5), np.zeros(5), eps=0.0)
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-15)
    np.testing.assert_allclose(z.var(-1), 1, rtol=1e-14)


def test_gelu_is_near_the_exact_one():
    x = np.linspace(-6, 6, 1001)
    # Hendrycks & Gimpel's tanh form is within 5e-4 of x Phi(x) everywhere
    np.testing.assert_allclose(layers.gelu(x), x * ndtr(x), atol=5e-4)


def test_cross_entropy_is_the_log_loss_and_survives_large_logits():
    z = rng.standard_normal((3, 4))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    assert float(layers.cross_entropy(z, LABELS)) == pytest.approx(log_loss(LABELS, p, labels=range(4)), rel=1e-14)
    assert float(layers.cross_entropy(np.asarray([[1e4, 0.0]]), np.asarray([1]))) == 1e4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layers.linear(X, W.T, B), ValueError, r"weight has .*expected \(a, b\) with a = 5 as in x"),
        (lambda: layers.linear(X, W, B[:2]), ValueError, r"bias has shape \(2,\).* with b = 4 as in weight"),
        (lambda: layers.linear(X, W[None], B), ValueError, r"weight has shape \(1, 5, 4\), expected \(a, b\)"),
        (
            lambda: layers.layer_norm(X, GAIN[:2], BIAS),
            ValueError,
            r"gain has .*expected \(a,\) with a = 5 as in x",
        ),
        (lambda: layers.layer_norm(X, GAIN, BIAS, eps=-1e-5), ValueError, "eps must be at least 0 and finite"),
        (lambda: layers.cross_entropy(np.zeros((2, 3)), np.zeros(3, int)), ValueError, "labels"),
        (lambda: layers.cross_entropy(np.zeros((2, 3)), np.zeros(2)), TypeError, "must be integers, got float64"),
        (
            lambda: layers.cross_entropy(np.zeros((2, 3)), np.asarray([0, 3])),
            ValueError,
            "from 0 to 2, the classes",
        ),
        (lambda: layers.gelu(np.asarray([np.nan])), ValueError, "x contains NaN"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, error, message):
    with refused(CALLS, error, match=message):
        call()


def test_a_variance_that_overflows_is_an_error_and_not_a_row_of_zeros():
    x, one = np.asarray([[1e20, -1e20, 0.0]], np.float32), np.ones(3, np.float32)
    for form in (layers.layer_norm, layers.layer_norm_vjp):
        with pytest.raises(FloatingPointError, match="overflows float32"):
            form(x, one, one)
