"""What the benchmark times: layers to run on, our attentions, and the floors that nobody can be faster than.

A competitor is prepared with q, k, v and gives a call without arguments, which computes and returns the attention
output, or the output and its gradients. The competitors from other libraries are in figures/speed/peers.py, in the
repository.

Shapes: q, k, v (heads, n, d).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from asap_ref.calibration.fit import fit_amortizer
from asap_ref.fast import attention as fast
from asap_ref.fast.from_dual import attention_from_dual, tiles
from asap_ref.fast.prediction import predicted_dual
from asap_ref.fast.slices import sorted_with_places
from asap_ref.fast.threads import cut, over_problems, spread
from asap_ref.method import attention as readable
from asap_ref.model.compilation import compile_model
from asap_ref.rivals.dual_softmax import fast_dual_softmax_attention
from asap_ref.rivals.initial_duals import fast_initial_attention
from asap_ref.rivals.one_sided import fast_one_sided_attention
from asap_ref.rivals.over_relaxed import fast_over_relaxed_attention
from asap_ref.rivals.sliced_attention import sliced_attention
from asap_ref.support.arrays import array_namespace, to_numpy, transpose

HEADS, WIDTH, N_ITER = 8, 64, 20
MAP = {  # the default one of compile_model
    name: inspect.signature(compile_model).parameters[name].default
    for name in ("n_slices", "candidates", "quadratic", "moments")
}
TOKENS = 8192  # to calibrate on
SHARPNESS = {"recorded-like": 3.0, "sharp": 20.0, "near-uniform": 0.5}  # standard deviation of the scores


@dataclass(frozen=True)
class Competitor:
    """Who races, and the mechanism it computes (for colours)."""

    mechanism: str
    prepare: Callable


# ------------------------------------------------------------------------------------------------------ problems


def layer(n, kind="recorded-like", *, heads=HEADS, d=WIDTH, seed=0):
    """Queries, keys and values as in a trained layer: float32, three of (heads, n, d).

    Tokens are a vector of their position, the same in every sequence, plus one of a word, drawn by Zipf's law (the
    seed draws the words): as in trained layers, keys vary less from sequence to sequence than within one. Projections
    have a decaying spectrum. Scores have the standard deviation of the kind, or one that is given as a number.
    """
    fixed, drawn = np.random.default_rng(7), np.random.default_rng(seed)
    width, words = 2 * d, 500
    waves = np.arange(1, 9)
    phases = 2 * np.pi * np.outer(np.linspace(0, 1, n), waves)
    position = np.concatenate([np.cos(phases), np.sin(phases)], axis=-1) @ fixed.standard_normal((16, width)) / 1.5
    vocabulary = fixed.standard_normal((words, width))
    decay = np.linspace(1, 0.05, width)[:, None]
    wq, wk, wv = (decay * fixed.standard_normal((heads, width, d)) for _ in range(3))
    frequency = 1 / np.arange(1, words + 1)
    x = position + vocabulary[drawn.choice(words, size=n, p=frequency / frequency.sum())]
    q, k, v = x @ wq, x @ wk, x @ wv
    sample = slice(None, None, max(n // 512, 1))
    S = q[:, sample] @ transpose(k[:, sample]) / math.sqrt(d)
    size = SHARPNESS.get(kind, kind) / S.std((-2, -1), keepdims=True)
    return tuple(x.astype(np.float32) for x in (q * size, k, v / v.std()))


@functools.cache
def amortizer(n, kind, heads, *, of_keys=False, **options):
    """Fit the default map to other sequences than the benchmark's, TOKENS a head, of the same length up to 1024.

    With ``of_keys`` queries and keys are exchanged, as the one-sided form takes it.
    """
    n = min(n, 1024)
    sequences = [layer(n, kind, heads=heads, seed=seed)[:2] for seed in range(1, 1 + max(TOKENS // n, 1))]
    batches = [(k[None], q[None]) if of_keys else (q[None], k[None]) for q, k in sequences]
    return fit_amortizer(batches, n_iter=N_ITER, **MAP | options)


# --------------------------------------------------------------------------------------------------------- floor


def products(q, k, v):
    """Only the two products, tile by tile: what no attention can be faster than."""
    return _product_tiles(q, k, v, exponential=False)


def product_exp_product(q, k, v):
    """One exponential between the two products: the floor of any attention by exponentials."""
    return _product_tiles(q, k, v, exponential=True)


def _product_tiles(q, k, v, *, exponential):
    if not isinstance(q, np.ndarray):
        xp = array_namespace(q)
        E = (q / math.sqrt(q.shape[-1])) @ transpose(k)
        return (xp.exp(E) if exponential else E) @ v

    def part(q, k, v):
        kt = transpose(k / (8 * math.sqrt(q.shape[-1])))  # the factor keeps bare exponentials in range
        out = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
        for rows in tiles(q.shape[-2], len(q) * k.shape[-2], least=32):
            E = q[:, rows] @ kt
            np.matmul(np.exp(E, out=E) if exponential else E, v, out=out[:, rows])
        return out

    return over_problems(part, [q, k, v], [])


def exponentials(q, k, v):
    """Only the exponentials, of as many scores, tile by tile. NumPy."""

    def part(q, k, v):
        rows = tiles(q.shape[-2], len(q) * k.shape[-2], least=32)
        scores = np.broadcast_to(np.linspace(-9, 0, k.shape[-2], dtype=q.dtype), (len(q), rows[0].stop, len(k[0])))
        scores, out = scores.copy(), np.empty_like(v)
        for R in rows:
            E = np.exp(scores[:, : R.stop - R.start])
            out[:, R, 0] = E[..., 0]
        return out

    return over_problems(part, [q, k, v], [])


# -------------------------------------------------------------------------------------------- Sinkhorn in tiles


def sinkhorn_in_tiles(q, k, v, *, n_iter=N_ITER, block=256):
    """Sinkhorn attention in O(n block) memory, NumPy: T + 1 passes, each of which forms the tiles again.

    A tile of rows, once its rows are right, gives its part of the columns' sums: a pass is two half steps. As lean as
    ASAP's tiles: the dual rides inside the product, and the last dual is the stabiliser.
    """

    def part(q, k, v):
        return np.stack([_one_sinkhorn_in_tiles(*head, n_iter, block) for head in zip(q, k, v, strict=True)])

    return over_problems(part, [q, k, v], [])


def _one_sinkhorn_in_tiles(q, k, v, n_iter, block):
    q, g, blocks = q / math.sqrt(q.shape[-1]), np.zeros(len(k), q.dtype), cut(len(q), block)
    f = np.concatenate([-(q[rows] @ k.T).max(-1) for rows in blocks])  # the stabiliser of the first pass
    for _ in range(n_iter):
        columns = np.zeros_like(g)
        for rows in blocks:
            E = _tile(q[rows], k, f[rows], g)
            sums = E.sum(-1)
            f[rows] -= np.log(sums)
            columns += (1 / sums) @ E
        g = g - np.log(columns)
    tiles = (_tile(q[rows], k, f[rows], g) for rows in blocks)
    return np.concatenate([E @ v / E.sum(-1, keepdims=True) for E in tiles])


def _tile(x, y, f, g):
    ones = np.ones((len(x), 1), x.dtype)
    E = (
        np.concatenate([x, f[:, None], ones], axis=-1)
        @ np.concatenate([y, np.ones_like(g)[:, None], g[:, None]], -1).T
    )
    return np.exp(E, out=E)


# ------------------------------------------------------------------------------------------------- who takes part


def calls(function, **settings):
    """Prepare by keeping q, k, v for the function."""
    return lambda q, k, v: lambda: function(q, k, v, **settings)


def steps(function_vjp, **settings):
    """Prepare a training step: forward, and backward with v as the cotangent."""

    def prepare(q, k, v):
        def call():
            out, vjp = function_vjp(q, k, v, **settings)
            return (out, *vjp(v))

        return call

    return prepare


def asap(n, kind, heads, **options):
    """ASAP attention with an amortizer for that kind of layer; our arrays have no batch axis."""
    return Competitor("asap", calls(fast.asap_attention, amortizer=amortizer(n, kind, heads, **options)))


def sinkhorn(n_iter=N_ITER):
    """Sinkhorn in scaling form."""
    return Competitor("sinkhorn", calls(fast.sinkhorn_attention, n_iter=n_iter))


def one_sided(n, kind):
    """ASAP on the key side alone: a softmax with a bias."""
    fitted = amortizer(n, kind, HEADS, of_keys=True)
    return Competitor("asap", calls(fast_one_sided_attention, amortizer=fitted))


def prediction(n, kind, heads):
    """Only the prediction of the query dual."""
    fitted = amortizer(n, kind, heads)
    return Competitor("other", lambda q, k, v: lambda: predicted_dual(q, k, fitted))


def sorts(n, kind, heads):
    """Only the sorts of the prediction: projected queries with their places, projected keys without. NumPy."""
    theta = transpose(amortizer(n, kind, heads).family("slices").directions)

    def prepare(q, k, v):
        x, y = theta @ transpose(q), theta @ transpose(k)  # (heads, L, n)

        def of_a_head(h):
            xs, _ = sorted_with_places(x[h])
            return xs + np.sort(y[h], axis=-1)[..., : xs.shape[-1]]

        return lambda: spread(of_a_head, range(heads))[-1]

    return Competitor("other", prepare)


def from_dual(n, kind, heads):
    """ASAP without its prediction, which is made beforehand. NumPy."""

    def prepare(q, k, v):
        f_hat = predicted_dual(q, k, amortizer(n, kind, heads))

        def part(q, k, v, f_hat):
            return attention_from_dual(q, k, v, f_hat[..., 0], None, None, epsilon=1.0)

        return lambda: over_problems(part, [q, k, v, f_hat[..., None]], [])

    return Competitor("other", prepare)


FLOORS = {
    "products": Competitor("other", calls(products)),
    "product, exp, product": Competitor("other", calls(product_exp_product)),
}
SOFTMAX = {"softmax": Competitor("softmax", calls(fast.softmax_attention))}
INITIAL = {
    f"dual from {start}": Competitor("initial", calls(fast_initial_attention, start=start))
    for start in ("gaussian", "sorting")
}
RELAXED = {
    f"Sinkhorn over-relaxed, {t} + 1 from {initial}": Competitor(
        "sinkhorn", calls(fast_over_relaxed_attention, n_iter=t, initial=initial)
    )
    for initial in ("softmax", "gaussian")
    for t in (1, 2, 3)
}
DUAL_SOFTMAX = {"dual softmax": Competitor("softmax", calls(fast_dual_softmax_attention))}
LOG_DOMAIN = {"Sinkhorn, log domain": Competitor("sinkhorn", calls(readable.sinkhorn_attention, n_iter=N_ITER))}
SLICED = {
    "sliced transport, 16 slices": Competitor(
        "sliced", lambda q, k, v: calls(sliced_attention, directions=_first_coordinates(q, 16))(q, k, v)
    )
}
TRAINING = {
    "softmax": Competitor("softmax", steps(fast.softmax_attention_vjp)),
    "Sinkhorn, scaling form": Competitor("sinkhorn", steps(fast.sinkhorn_attention_vjp, n_iter=N_ITER)),
    "Sinkhorn, log domain": Competitor("sinkhorn", steps(readable.sinkhorn_attention_vjp, n_iter=N_ITER)),
}


def _first_coordinates(q, count):
    xp = array_namespace(q)
    return xp.eye(q.shape[-1], dtype=q.dtype)[:, :count]


# ------------------------------------------------------------------------------------------------------- fidelity


class Teacher:
    """Sinkhorn attention of T iterations in float64, and how far others are from it."""

    def __init__(self, arrays, n_iter, *, with_plan=False):
        self.arrays = arrays
        q, k, v = (to_numpy(x).astype(np.float64) for x in arrays)
        self.out = fast.sinkhorn_attention(q, k, v, n_iter=n_iter)
        self.plan = fast.sinkhorn_attention(q, k, self.identity(np.float64), n_iter=n_iter) if with_plan else None

    def identity(self, dtype):
        """Values that make the output the plan."""
        *leading, m, _ = self.arrays[1].shape
        return np.ascontiguousarray(np.broadcast_to(np.eye(m, dtype=dtype), (*leading, m, m)))

    def distance(self, prepare):
        """Relative error of the output; KL of the plans, a row; mean distance of column sums from one."""
        q, k, v = self.arrays
        found = to_numpy(prepare(q, k, v)()).astype(np.float64)
        error = {"output_error": float(np.linalg.norm(found - self.out) / np.linalg.norm(self.out))}
        if self.plan is None:
            return error
        identity = array_namespace(q).asarray(self.identity(np.float32), device=q.device)
        plan = to_numpy(prepare(q, k, identity)()).astype(np.float64)  # any attention shows its plan
        P, P_hat = (np.maximum(plan, 1e-30) for plan in (self.plan, plan))
        kl = float(np.mean(np.sum(P * np.log(P / P_hat), axis=-1)))
        return error | {"kl": kl, "column_error": float(np.mean(np.abs(plan.sum(-2) - 1)))}
