"""Attention from a query dual, by its two-sided transform: product, one exponential, product.

The dual (predicted, or from a closed form) rides inside the first product as one extra column. A column of the plan
needs no other one to be normalised, and rows can wait until the end. So the keys are gone through once, a block J of
columns at a time, and both normalisations are folded into the second product (derived):

    E = exp([q / sqrt(d), f_hat] [k_J, 1]ᵀ / epsilon)        (n, |J|)
    s = column sums of E                                     exp(-g_J / epsilon), up to n'/m'
    O += E [v_J / s, 1 / s]                                  (n, p + 1)
    at the end  out = O[:, :p] / O[:, p]

Memory is O(n |J|), and nothing is formed twice. Padding costs a mask and no pass: masked queries do not count in s,
and masked keys have 1 / s = 0. No stabiliser is needed where the dual is any good, since f_hat brings the exponents
near -g. Where a sum leaves the safe range all the same, that problem is done again by the readable form, in the log
domain.

On NumPy a block is cut into tiles of rows that stay in the cache; elsewhere blocks are as large as memory allows.
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.method.masks import keep, keep_tokens
from asap_ref.method.transport import attention_scores, entropic_c_transform, half_step_plan
from asap_ref.support.arrays import array_namespace, one_pass, transpose

TILE = 2**18  # entries of a tile of scores: 1 MiB in float32
NARROW = 256  # columns of a block, at the least: narrower ones spend their time adding to the output
SLAB = 2**30  # entries of scores on a device at once: 4 GiB in float32


def attention_from_dual(q, k, v, f_hat, query_mask, key_mask, *, epsilon, block=None):
    """(..., n, d), (..., m, d), (..., m, p), (..., n) -> (..., n, p); one leading axis on NumPy. Padding is zero."""
    f_hat = below_top(f_hat, query_mask)  # any constant will do, but a large one would cost digits
    problem = (q, k, v, f_hat, query_mask, key_mask)
    if isinstance(q, np.ndarray):
        out, good = _from_tiles(*problem, epsilon, block)
        for bad in np.flatnonzero(~good):  # the log domain survives what the tiles did not
            out[bad] = _in_log_domain(*(None if x is None else x[bad] for x in problem), epsilon)
        return out
    xp = array_namespace(q, k, v, f_hat)
    out, good = _from_slabs(*problem, epsilon, block)
    return out if bool(xp.all(good)) else xp.where(good[..., None, None], out, _in_log_domain(*problem, epsilon))


def below_top(x, mask):
    """Take from x (..., n) its largest value over tokens, which becomes zero; zero at padding."""
    xp = array_namespace(x)
    tokens = x if mask is None else xp.where(mask, x, -xp.inf)
    return keep(x - xp.max(tokens, axis=-1, keepdims=True), mask)


def tiles(count, size, least=1):
    """Slices of ``count`` rows or columns, so that a tile, which has ``size`` entries in each, has about TILE."""
    return cut(count, max(TILE // max(size, 1), least))


def cut(count, step):
    """Slices of 0 to ``count``, ``step`` long but for the last."""
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]


def divisor(sums, mask):
    """Sums (..., n, m) to divide by: plus one where a sequence is all padding (..., n'), as they are zero there."""
    if mask is None:
        return sums
    xp = array_namespace(sums)
    return sums + xp.astype(~xp.any(mask, axis=-1), sums.dtype)[..., None, None]


def _from_slabs(q, k, v, f_hat, query_mask, key_mask, epsilon, block):
    """As the formulas at the top have it; the same results as `_from_tiles`.

    Shapes are (..., n, d) and so on. What a slab holds does not matter to a device, as long as it is much; what is
    launched does, so that the dual is added in the pass of the exponential.
    """
    xp = array_namespace(q, k, v)
    n, m = q.shape[-2], k.shape[-2]
    if epsilon != 1.0:
        f_hat = f_hat / epsilon
    f_hat, q, kt = f_hat[..., None], q / (math.sqrt(q.shape[-1]) * epsilon), transpose(k)
    counted = keep(xp.ones_like(f_hat[..., 0]), query_mask)[..., None, :]  # (..., 1, n)
    out = total = None
    sums = []
    for J in cut(m, block or max(SLAB // max(math.prod(q.shape[:-2]) * n, 1), 1)):
        E = _exp_of_sum(q @ kt[..., J], f_hat)  # (..., n, |J|)
        s = divisor(counted @ E, query_mask)[..., 0, :]
        b = keep(1 / s, None if key_mask is None else key_mask[..., J])[..., None]  # (..., |J|, 1)
        more, rows = E @ (v[..., J, :] * b), E @ b
        out, total = (more, rows) if out is None else (out + more, total + rows)
        sums.append(s)
    total = divisor(total, key_mask)
    sums = xp.concat([*sums, total[..., 0]], axis=-1)
    out = keep_tokens(out / total, query_mask)
    return out, xp.all(_in_range(sums), axis=-1) & xp.all(xp.isfinite(out), axis=(-1, -2))


@one_pass
def _exp_of_sum(xp, x, y):
    return xp.exp(x + y)


@one_pass
def _in_range(xp, sums):
    info = xp.finfo(sums.dtype)
    return (sums > float(info.smallest_normal) * 1e6) & (sums < float(info.max) * 1e-6)


def _from_tiles(q, k, v, f_hat, query_mask, key_mask, epsilon, block):
    """(B, n, d), (B, m, d), (B, m, p), (B, n) -> (B, n, p), and whether each problem stayed in range, (B,).

    Padding is zero in q, k and v.
    """
    B, n, m, p = *q.shape[:-1], k.shape[-2], v.shape[-1]
    q1 = np.concatenate([q / (math.sqrt(q.shape[-1]) * epsilon), f_hat[..., None] / epsilon], axis=-1)
    k1t = np.concatenate([transpose(k), np.ones_like(k[..., None, :, 0])], axis=-2)
    counted = keep(np.ones_like(f_hat), query_mask)[:, None, :]  # (B, 1, n)
    out, total, s = (np.zeros((B, *shape), q.dtype) for shape in ((n, p), (n, 1), (1, m)))
    columns = cut(m, block) if block else tiles(m, B * n, least=NARROW)
    width = columns[0].stop if columns else 0
    rows = tiles(n, B * width)
    kept = np.empty((B, n, width), q.dtype)
    for J in columns:
        E = kept[..., : J.stop - J.start]
        for R in rows:
            np.exp(np.matmul(q1[:, R], k1t[..., J], out=E[:, R]), out=E[:, R])
            s[..., J] += counted[..., R] @ E[:, R]  # as a product, at BLAS speed
        b = 1 / divisor(s[..., J], query_mask)[..., 0, :, None]
        b = keep_tokens(b, None if key_mask is None else key_mask[:, J])  # (B, |J|, 1)
        vb = v[:, J] * b  # with b as one more column, the product would lose the round number that makes it fast
        for R in reversed(rows):  # the last ones are still in the cache
            out[:, R] += E[:, R] @ vb
            total[:, R] += E[:, R] @ b
    s, total = divisor(s, query_mask), divisor(total, key_mask)
    tiny, huge = np.finfo(q.dtype).tiny * 1e6, np.finfo(q.dtype).max * 1e-6
    sums = np.concatenate([s[:, 0], total[..., 0]], axis=-1)
    good = np.all((sums > tiny) & (sums < huge), axis=-1)
    out = keep_tokens(out / total, query_mask)
    return out, good & np.isfinite(out).all((-1, -2))


def _in_log_domain(q, k, v, f_hat, query_mask, key_mask, epsilon):
    """One problem in the log domain: (n, d), (m, d), (m, p), (n,) -> (n, p)."""
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    S = attention_scores(q, k)
    g = entropic_c_transform(S, f_hat, onto="key", **settings)
    return half_step_plan(S, g, onto="query", **settings) @ v
