"""Attention from a query dual, by its two-sided transform: product, one exponential, product.

The dual (predicted, or from a closed form) rides inside the first product as one extra column. A column of the plan
needs no other one to be normalised, and rows can wait until the end. So the keys are gone through once, a block J of
columns at a time, and both normalisations are folded into the second product (derived):

    E = exp([q / sqrt(d), f_hat] [k_J, 1]ᵀ / epsilon)        (n, |J|)
    s = column sums of E                                     exp(-g_J / epsilon), up to n'/m'
    O += E [v_J / s, 1 / s]                                  (n, p + 1)
    at the end  out = O[:, :p] / O[:, p]

Memory is O(n |J|), and nothing is formed twice.

Further, over-relaxed iterations (extensions/relaxation.py) end a pass early: with the rows' sums total = E [1 / s],
they go from f_hat to f = f_hat - omega epsilon log total, which scales the rows of E by a = total^-omega. Where all
blocks of E are kept, the next pass has them: two matrix-vector products, a E and E [1 / s]. Where they would be too
large, they are formed again from f.

Padding costs a mask and no pass: masked queries do not count in s,
and masked keys have 1 / s = 0. No stabiliser is needed where the dual is any good, since f_hat brings the exponents
near -g. Where a sum leaves the safe range all the same, that problem is done again by the readable form, in the log
domain.

On NumPy a block is cut into tiles of rows that stay in the cache; elsewhere blocks are as large as memory allows.
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.fast.exponential import exp_in_place
from asap_ref.fast.threads import cut
from asap_ref.method.transport import attention_scores, entropic_c_transform, half_step_plan, two_sided_c_transform
from asap_ref.support.arrays import array_namespace, one_pass, transpose
from asap_ref.support.masks import keep, keep_tokens

TILE = 2**18  # entries of a tile of scores: 1 MiB in float32
KEPT = 2**21  # entries of scores of a problem that are kept between iterations: 8 MiB in float32
NARROW = 256  # columns of a block, at the least: narrower ones spend their time adding to the output
SLAB = 2**30  # entries of scores on a device at once: 4 GiB in float32


def attention_from_dual(q, k, v, f_hat, query_mask, key_mask, *, epsilon, refine=0, omega=1.0, block=None):
    """(..., n, d), (..., m, d), (..., m, p), (..., n) -> (..., n, p); one leading axis on NumPy. Padding is zero.

    ``omega`` is a number, or (..., 1, 1).
    """
    f_hat = below_top(f_hat, query_mask)  # any constant will do, but a large one would cost digits
    problem, settings = (q, k, v, f_hat, query_mask, key_mask), {"epsilon": epsilon, "refine": refine}
    if isinstance(q, np.ndarray):
        out, good = _from_tiles(*problem, omega=omega, block=block, **settings)
        for bad in np.flatnonzero(~good):  # the log domain survives what the tiles did not
            own = omega if isinstance(omega, float) else omega[bad]
            out[bad] = _in_log_domain(*(None if x is None else x[bad] for x in problem), omega=own, **settings)
        return out
    xp = array_namespace(q, k, v, f_hat)
    out, good = _from_slabs(*problem, omega=omega, block=block, **settings)
    if bool(xp.all(good)):
        return out
    return xp.where(good[..., None, None], out, _in_log_domain(*problem, omega=omega, **settings))


def below_top(x, mask):
    """Take from x (..., n) its largest value over tokens, which becomes zero; zero at padding."""
    xp = array_namespace(x)
    tokens = x if mask is None else xp.where(mask, x, -xp.inf)
    return keep(x - xp.max(tokens, axis=-1, keepdims=True), mask)


def tiles(count, size, least=1):
    """Slices of ``count`` rows or columns, so that a tile, which has ``size`` entries in each, has about TILE."""
    return cut(count, max(TILE // max(size, 1), least))


def divisor(sums, mask):
    """Sums (..., n, m) to divide by: plus one where a sequence is all padding (..., n'), as they are zero there."""
    if mask is None:
        return sums
    xp = array_namespace(sums)
    return sums + xp.astype(~xp.any(mask, axis=-1), sums.dtype)[..., None, None]


def _from_slabs(q, k, v, f_hat, query_mask, key_mask, *, epsilon, refine, omega, block):
    """As the formulas at the top have it; the same results as `_from_tiles`.

    Shapes are (..., n, d) and so on. What a slab holds does not matter to a device, as long as it is much; what is
    launched does, so that the dual is added in the pass of the exponential.
    """
    xp = array_namespace(q, k, v)
    n, m = q.shape[-2], k.shape[-2]
    if epsilon != 1.0:
        f_hat = f_hat / epsilon
    f, q, kt = f_hat[..., None], q / (math.sqrt(q.shape[-1]) * epsilon), transpose(k)
    a = counted = keep(xp.ones_like(f_hat), query_mask)[..., None, :]  # (..., 1, n)
    columns = cut(m, block or max(SLAB // max(math.prod(q.shape[:-2]) * n, 1), 1))
    E, of_rows, of_columns = None, [], []
    for left in range(refine, -1, -1):
        out = total = None
        for J in columns:
            if E is None or len(columns) > 1:
                E = _exp_of_sum(q @ kt[..., J], f)  # (..., n, |J|)
            s = divisor(a @ E, query_mask)[..., 0, :]
            of_columns.append(s)
            b = keep(1 / s, None if key_mask is None else key_mask[..., J])[..., None]  # (..., |J|, 1)
            total = E @ b if total is None else total + E @ b
            if not left:
                more = E @ (v[..., J, :] * b)
                out = more if out is None else out + more
        total = divisor(total, key_mask)
        of_rows.append(total[..., 0])
        if left:
            step = -omega * xp.log(transpose(a) * total + (1 - transpose(counted)))  # (..., n, 1) over epsilon
            if len(columns) > 1:
                f = f + step
            else:
                a = a * transpose(xp.exp(step))
                scaling = (a + (1 - counted))[..., 0, :]
                of_rows += [scaling, 1 / scaling]
    out = keep_tokens(out / total, query_mask)
    return out, _in_range(xp, of_rows, of_columns, out)


@one_pass
def _exp_of_sum(xp, x, y):
    return xp.exp(x + y)


def _in_range(xp, of_rows, of_columns, out):
    """Say of each problem whether its exponentials held what the sums of rows and columns, lists of (..., k), need."""
    rows, columns = (xp.concat(sums, axis=-1) if len(sums) > 1 else sums[0] for sums in (of_rows, of_columns))
    least_row, least, largest = xp.min(rows, axis=-1), xp.min(columns, axis=-1), xp.max(columns, axis=-1)
    finite = xp.all(xp.isfinite(out), axis=(-1, -2))
    return _held(least_row, least, largest, float(max(rows.shape[-1], columns.shape[-1])), finite)


@one_pass
def _held(xp, least_row, least_column, largest_column, size, finite):
    """No sum may overflow: those of rows cannot, of entries that are normalised, while their scalings are in range.

    Where an exponential underflowed, up to the smallest normal number was missed, as many times as ``size``. The plan
    has it divided by both sums: it must be nothing beside rows that sum to one.
    """
    info = xp.finfo(least_row.dtype)
    tiny, most = float(info.smallest_normal), float(info.max) * 1e-6
    in_range = (least_row > tiny) & (least_column > tiny) & (largest_column < most) & finite
    return in_range & (least_row * least_column > size * (tiny / float(info.eps)))


def _from_tiles(q, k, v, f_hat, query_mask, key_mask, *, epsilon, refine, omega, block):
    """(B, n, d), (B, m, d), (B, m, p), (B, n) -> (B, n, p), and whether each problem stayed in range, (B,).

    Padding is zero in q, k and v.
    """
    B, n, m, p = *q.shape[:-1], k.shape[-2], v.shape[-1]
    q1 = np.concatenate([q / (math.sqrt(q.shape[-1]) * epsilon), f_hat[..., None] / epsilon], axis=-1)
    k1t = np.concatenate([transpose(k), np.ones_like(k[..., None, :, 0])], axis=-2)
    a = counted = keep(np.ones_like(f_hat), query_mask)[:, None, :]  # (B, 1, n)
    columns = cut(m, block) if block else tiles(m, B * n, least=NARROW)
    width = columns[0].stop if columns else 0
    rows = tiles(n, B * width)
    keeping = refine and n * m <= KEPT
    blocks = [np.empty((B, n, width), q.dtype) for _ in (columns if keeping else columns[:1])]
    of_rows, of_columns = [], []
    for left in range(refine, -1, -1):
        out, total, s = (np.zeros((B, *shape), q.dtype) for shape in ((n, p), (n, 1), (1, m)))
        formed = keeping and left < refine
        for i, J in enumerate(columns):
            E = blocks[i if keeping else 0][..., : J.stop - J.start]
            for R in rows:
                if not formed:
                    exp_in_place(np.matmul(q1[:, R], k1t[..., J], out=E[:, R]))
                s[..., J] += a[..., R] @ E[:, R]  # as a product, at BLAS speed
            sums = divisor(s[..., J], query_mask)[..., 0, :]
            of_columns.append(sums)
            b = keep_tokens(1 / sums[..., None], None if key_mask is None else key_mask[:, J])  # (B, |J|, 1)
            vb = None if left else v[:, J] * b
            for R in reversed(rows):  # the last ones are still in the cache
                if (
                    not left
                ):  # with b as one more column, the product would lose the round number that makes it fast
                    out[:, R] += E[:, R] @ vb
                total[:, R] += E[:, R] @ b
        total = divisor(total, key_mask)
        of_rows.append(total[..., 0])
        if left:
            step = -omega * np.log(transpose(a) * total + (1 - transpose(counted)))  # (B, n, 1), over epsilon
            if keeping:
                a = a * transpose(np.exp(step))
                scaling = (a + (1 - counted))[:, 0]
                of_rows += [scaling, 1 / scaling]
            else:
                q1[..., -1:] += step
    out = keep_tokens(out / total, query_mask)
    return out, _in_range(array_namespace(q), of_rows, of_columns, out)


def _in_log_domain(q, k, v, f_hat, query_mask, key_mask, *, epsilon, refine, omega):
    """In the log domain: (..., n, d), (..., m, d), (..., m, p), (..., n) -> (..., n, p).

    The plan is a row softmax, whose rows are exact: of duals that are rounded they would be off by 6e-8 of the scores.
    """
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    S, f, step = attention_scores(q, k), f_hat, omega if isinstance(omega, float) else omega[..., 0]
    for _ in range(refine):
        f = (1 - step) * f + step * two_sided_c_transform(S, f, **settings).query
    return half_step_plan(S, entropic_c_transform(S, f, onto="key", **settings), onto="query", **settings) @ v
