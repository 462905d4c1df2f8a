"""How the inputs of the cases are made.

Numbers are multiples of 1/32 below 4 where nothing else is said, so that float16 and bfloat16 hold them exactly
and an error is one of the computation, not of its input. ``g(*shape, spread=1.0)`` draws from the case's own seed.
"""

from __future__ import annotations

import numpy as np

from asap_ref import slice_directions


def grid(rng, *shape, spread=1.0):
    return np.clip(np.round(32 * spread * rng.standard_normal(shape)), -128 * spread, 128 * spread) / 32


def theta(dim, n_slices, seed=0):
    return slice_directions(dim, n_slices, seed=seed).astype(np.float32).astype(np.float64)


def tokens(valid, n):
    """A boolean mask with that many valid tokens a row, not always the first ones."""
    mask = np.zeros((len(valid), n), bool)
    for row, count in enumerate(valid):
        mask[row, (np.arange(count) * (row + 1) + row) % n if n % (row + 1) else np.arange(count)] = True
        assert mask[row].sum() == count
    return mask


def spoiled(x, mask, value=100.0):
    """Padding filled with a large number, which nothing may see."""
    return np.where(mask, x, value)


def masked_scores(g, n, m, queries, keys, *names):
    qm, km = tokens(queries, n), tokens(keys, m)
    pairs = qm[:, :, None] & km[:, None, :]
    made = {"scores": spoiled(g(len(queries), n, m, spread=2), pairs)}
    for name in names:
        length, mask = (m, km) if name == "key_dual" or name == "dual_m" else (n, qm)
        made[name.removesuffix("_m").removesuffix("_n")] = spoiled(g(len(queries), length), mask)
    return {**made, "query_mask": qm, "key_mask": km}


def apart(g, *shape):
    """Samples without ties, in no order."""
    n = shape[-1]
    jitter = g(*shape, spread=0.25)
    base = 4 * np.argsort(g(*shape[:-1], n) + np.arange(n) / 4096, axis=-1) / n
    return np.round(32 * (base + np.clip(jitter, -1 / n, 1 / n))) / 32 - 2


def masked_samples(g, n, m, valid_x, valid_y):
    xm, ym = tokens(valid_x, n), tokens(valid_y, m)
    x, y = apart(g, len(valid_x), n), apart(g, len(valid_y), m)
    return {"x": spoiled(x, xm, 0.0), "y": spoiled(y, ym), "x_mask": xm, "y_mask": ym}


def qk(n, m, d, n_slices, *leading, spread=1):
    return lambda g: {
        "q": g(*leading, n, d, spread=spread),
        "k": g(*leading, m, d, spread=spread),
        "directions": theta(d, n_slices),
    }


def masked_qk(g, n, m, d, n_slices, queries, keys, heads=0):
    qm, km = tokens(queries, n), tokens(keys, m)
    if heads:
        qm, km = qm[:, None, :], km[:, None, :]
    leading = (len(queries), heads) if heads else (len(queries),)
    return {
        "q": spoiled(g(*leading, n, d), qm[..., None]),
        "k": spoiled(g(*leading, m, d), km[..., None]),
        "directions": theta(d, n_slices),
        "query_mask": qm,
        "key_mask": km,
    }


def amortized(n, m, d, n_slices, n_heads, batch, extra=(), spread=1, values=0, n_cumulants=3):
    def make(g):
        made = {"q": g(batch, n_heads, n, d, spread=spread), "k": g(batch, n_heads, m, d, spread=spread)}
        if values:
            made["v"] = g(batch, n_heads, m, values)
        made["directions"] = theta(d, n_slices)
        made["weights"] = g(n_heads, n_slices + n_cumulants, spread=0.25)
        return made

    return make


def masked_amortized(g, n, m, d, n_slices, n_heads, queries, keys, values=0):
    made = masked_qk(g, n, m, d, n_slices, queries, keys, heads=n_heads)
    masks = {name: made.pop(name) for name in ("query_mask", "key_mask")}
    directions = made.pop("directions")
    if values:
        made["v"] = spoiled(g(len(queries), n_heads, m, values), masks["key_mask"][..., None])
    return {**made, "directions": directions, "weights": g(n_heads, n_slices + 3, spread=0.25), **masks}


def with_basis(make, rank):
    """A basis and weights of its features too."""

    def made(g):
        x = make(g)
        heads = len(x["weights"])
        more = rank + rank * (rank + 1) // 2 + rank * rank
        weights = np.concatenate([x["weights"], g(heads, more, spread=0.125)], axis=1)
        return {**x, "weights": weights, "basis": theta(x["q"].shape[-1], rank, seed=1)}

    return made


def with_own_directions(make):
    def made(g):
        x = make(g)
        heads, dim, n_slices = len(x["weights"]), *x["directions"].shape
        return {**x, "directions": np.stack([theta(dim, n_slices, seed=h) for h in range(heads)])}

    return made


def qkv(n, m, d, p, *leading, spread=1.0):
    return lambda g: {
        "q": g(*leading, n, d, spread=spread),
        "k": g(*leading, m, d, spread=spread),
        "v": g(*leading, m, p),
    }


def masked_qkv(g, n, m, d, p, heads, queries, keys):
    qm, km = tokens(queries, n)[:, None, :], tokens(keys, m)[:, None, :]
    made = qkv(n, m, d, p, len(queries), heads)(g)
    return {
        "q": spoiled(made["q"], qm[..., None]),
        "k": spoiled(made["k"], km[..., None]),
        "v": spoiled(made["v"], km[..., None]),
        "query_mask": qm,
        "key_mask": km,
    }


def espformer(n, m, d, p, n_slices=0):
    """Tokens whose projections are well apart, so that the order of a sort is plain in any precision."""

    def made(g):
        x = {
            "q": np.stack([apart(g, n) for _ in range(d)], -1),
            "k": np.stack([apart(g, m) for _ in range(d)], -1),
        }
        x["v"] = g(m, p)
        if n_slices:
            x["directions"] = theta(d, n_slices)
        return x

    return made


def masked_espformer(g):
    x = {name: np.stack([array] * 2) for name, array in espformer(6, 5, 2, 2)(g).items()}
    qm, km = tokens((4, 6), 6), tokens((4, 3), 5)
    masks = {"q": qm, "k": km, "v": km}
    return {**{name: spoiled(x[name], masks[name][..., None]) for name in "qkv"}, "query_mask": qm, "key_mask": km}
