"""Attention from a query dual, by its two-sided transform: product, one exponential, product.

The dual (predicted, or from a closed form) rides inside the first product as one extra column, the column sums are
taken from the tile while it is hot, and both normalisations are folded into the second product (derived):

    E = exp([q / sqrt(d), f_hat] [k, 1]ᵀ / epsilon)        (n, m), in tiles of rows
    s = column sums of E                                    exp(-g / epsilon), up to n'/m'
    O = E [v / s, 1 / s]                                    (n, p + 1)
    out = O[:, :p] / O[:, p]

Padding costs a mask and no pass: masked queries do not count in s, and masked keys have 1 / s = 0. No stabiliser is
needed where the dual is any good, since f_hat brings the exponents near -g. Where a sum leaves the safe range
all the same, that problem is done again by the readable form, in the log domain.

On NumPy rows are cut in tiles that stay in the cache; elsewhere whole arrays are, as far as memory goes.
"""

from __future__ import annotations

import functools
import math
import operator as operators

import numpy as np

from asap_ref.arrays import array_namespace, one_pass, transpose
from asap_ref.masks import keep, keep_tokens
from asap_ref.transport import attention_scores, transport_plan, two_sided_c_transform

TILE = 2**18  # entries of a tile of scores: 1 MiB in float32
SLAB = 2**30  # entries of scores on a device at once: 4 GiB in float32


def attention_from_dual(q, k, v, f_hat, query_mask, key_mask, *, epsilon, block=None):
    """(..., n, d), (..., m, d), (..., m, p), (..., n) -> (..., n, p); one leading axis on NumPy. Padding is zero."""
    problem = (q, k, v, f_hat, query_mask, key_mask)
    if isinstance(q, np.ndarray):
        out, good = _from_tiles(*problem, epsilon, block)
        for bad in np.flatnonzero(~good):  # the log domain survives what the tiles did not
            out[bad] = _in_log_domain(*(None if x is None else x[bad] for x in problem), epsilon)
        return out
    xp = array_namespace(q, k, v, f_hat)
    out, good = _from_slabs(*problem, epsilon, block)
    return out if bool(xp.all(good)) else xp.where(good[..., None, None], out, _in_log_domain(*problem, epsilon))


def row_tiles(q, k, block=None):
    """Slices of rows, so that a tile of scores of the chunk has about TILE entries."""
    n, m = q.shape[-2], k.shape[-2]
    rows = block or max(min(n, TILE // max(m * len(q), 1)), min(n, 32))
    return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]


def divisor(sums, mask):
    """Sums (..., n, m) to divide by: plus one where a sequence is all padding (..., n'), as they are zero there."""
    if mask is None:
        return sums
    xp = array_namespace(sums)
    return sums + xp.astype(~xp.any(mask, axis=-1), sums.dtype)[..., None, None]


def _from_slabs(q, k, v, f_hat, query_mask, key_mask, epsilon, block):
    """As the formulas at the top have it, in one slab of rows where memory allows; the same results as `_from_tiles`.

    Shapes are (..., n, d) and so on. What a slab holds does not matter to a device, as long as it is much; what is
    launched does, so that the dual is added in the pass of the exponential.
    """
    xp = array_namespace(q, k, v)
    n = q.shape[-2]
    f_hat = f_hat if query_mask is None else xp.where(query_mask, f_hat, -xp.inf)
    f_hat = keep(f_hat - xp.max(f_hat, axis=-1, keepdims=True), query_mask)
    if epsilon != 1.0:
        f_hat = f_hat / epsilon
    f_hat, q, kt = f_hat[..., None], q / (math.sqrt(q.shape[-1]) * epsilon), transpose(k)
    counted = keep(xp.ones_like(f_hat[..., 0]), query_mask)[..., None, :]  # (..., 1, n)
    rows = block or max(SLAB // max(math.prod(q.shape[:-2]) * k.shape[-2], 1), 1)
    slabs = [slice(i, min(i + rows, n)) for i in range(0, n, rows)]

    def exponentials(rows):
        return _exp_of_sum(q[..., rows, :] @ kt, f_hat[..., rows, :])

    whole = exponentials(slabs[0]) if len(slabs) == 1 else None

    def over_slabs(function):
        """Call the function on the exponentials of each slab, which are formed anew each time."""
        return [function(rows, exponentials(rows) if whole is None else whole) for rows in slabs]

    s = functools.reduce(operators.add, over_slabs(lambda rows, E: counted[..., rows] @ E))
    s = divisor(s, query_mask)[..., 0, :]
    b = keep(1 / s, key_mask)[..., None]  # (..., m, 1)
    v = v * b
    parts = zip(*over_slabs(lambda rows, E: (E @ v, E @ b)), strict=True)
    out, total = (part[0] if len(part) == 1 else xp.concat(part, axis=-2) for part in parts)
    total = divisor(total, key_mask)
    out = keep_tokens(out / total, query_mask)
    good = xp.all(_in_range(s), axis=-1) & xp.all(_in_range(total), axis=(-1, -2))
    return out, good & xp.all(xp.isfinite(out), axis=(-1, -2))


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
    n, m, p = q.shape[-2], k.shape[-2], v.shape[-1]
    f_hat = f_hat if query_mask is None else np.where(query_mask, f_hat, -np.inf)
    f_hat = keep(f_hat - f_hat.max(-1, keepdims=True, initial=np.finfo(q.dtype).min), query_mask)
    q1 = np.concatenate([q / (math.sqrt(q.shape[-1]) * epsilon), f_hat[..., None] / epsilon], axis=-1)
    k1t = np.concatenate([transpose(k), np.ones_like(k[..., None, :, 0])], axis=-2)
    counted = keep(np.ones_like(f_hat), query_mask)[:, None, :]  # (B, 1, n)
    tiles = row_tiles(q, k, block)
    keeping = block is None and n * m <= 2**24  # else form each tile again instead of keeping it
    kept = np.empty((len(q), n, m), q.dtype) if keeping else None

    def tile(rows):
        E = np.matmul(q1[:, rows], k1t, out=kept[:, rows] if keeping else None)
        return np.exp(E, out=E)

    s = 0.0
    for rows in tiles:
        s = s + np.matmul(counted[..., rows], tile(rows))  # (B, 1, m): as a product, at BLAS speed
    s = divisor(s, query_mask)[..., 0, :]
    inverse = 1 / s
    b = keep(inverse, key_mask)[..., None]
    v = v * b  # with b as one more column, the product would lose the round number of columns that makes it fast
    out, total = (np.empty((len(q), n, columns), q.dtype) for columns in (p, 1))
    for rows in reversed(tiles):  # the last ones are still in the cache
        E = kept[:, rows] if keeping else tile(rows)
        np.matmul(E, v, out=out[:, rows])
        np.matmul(E, b, out=total[:, rows])
    total = divisor(total, key_mask)
    tiny, huge = np.finfo(q.dtype).tiny * 1e6, np.finfo(q.dtype).max * 1e-6
    sums = np.concatenate([s, total[..., 0], inverse], axis=-1)
    good = np.all((sums > tiny) & (sums < huge), axis=-1)
    out = keep_tokens(out / total, query_mask)
    return out, good & np.isfinite(out).all((-1, -2))


def _in_log_domain(q, k, v, f_hat, query_mask, key_mask, epsilon):
    """One problem in the log domain: (n, d), (m, d), (m, p), (n,) -> (n, p)."""
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    S = attention_scores(q, k)
    return transport_plan(S, two_sided_c_transform(S, f_hat, **settings), **settings) @ v
