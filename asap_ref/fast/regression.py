"""The sums of calibration made fast: the same names as in method/regression.py.

The closure-ready dual comes from the scaling form (scaling.py), which goes back to the log domain where it has to;
features come in the fewest passes (features.py). Features and dual together are one matrix X, and one product X Xᵀ in
float64 has all sums; another metric is another product (calibration/kl.py). On NumPy heads are spread over threads, and
a thread takes so few sequences at a time that what it makes of them stays in the cache. How the work is cut depends on
its size alone, so that the number of threads changes no bit of the result.

Shapes: q (..., H, n, d), k (..., H, m, d), X (..., H, F + 1, n) -> products (H, F + 1, F + 1).
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.fast.features import fast_features
from asap_ref.fast.scaling import scale, scaled_duals
from asap_ref.fast.threads import CHUNK, cut, flat_mask, spread
from asap_ref.method import regression as readable
from asap_ref.method.features import dual_features
from asap_ref.method.regression import SufficientStatistics
from asap_ref.method.transport import attention_scores
from asap_ref.support.arrays import array_namespace, is_half, to_numpy
from asap_ref.support.contracts import inside
from asap_ref.support.family import check_families
from asap_ref.support.masks import centred, keep, keep_tokens, of_features, queries_with_a_key
from asap_ref.support.settings import check_count
from asap_ref.support.trees import of_heads

PARTS = 64  # sums in memory at once, at the most, but for one a head


def regression_statistics(q, k, families, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sums of `asap_ref.method.regression.regression_statistics`, up to rounding."""
    check_count(n_iter, "n_iter", "regression_statistics", least=1)
    given = (q, k, families, n_iter, epsilon, query_mask, key_mask)
    return fast_statistics(readable.regression_statistics, _regression_products, *given)


def fast_statistics(definition, products, q, k, families, n_iter, epsilon, query_mask, key_mask):
    """What the definition gives for the same arguments, from products: sums of some sequences, (H, F + 1, F + 1)."""
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    dual_features.examined(q, k, families, **masks)
    check_families(families, q)
    settings = {"n_iter": n_iter, "epsilon": epsilon}
    if is_half(q.dtype):  # which the definition computes in float32
        return definition(q, k, families, **settings, **masks)
    if isinstance(q, np.ndarray):
        J = _over_heads(products, q, k, families, query_mask, key_mask, **settings)
    else:
        J = inside(products, q, k, families, query_mask, key_mask, **settings)
    if not np.isfinite(J).all():  # the definition says why
        return definition(q, k, families, **settings, **masks)
    valid = np.broadcast_to(True if query_mask is None else to_numpy(query_mask), q.shape[:-1])
    return SufficientStatistics(J[:, :-1, :-1], J[:, :-1, -1], J[:, -1, -1], int(valid.sum()) // q.shape[-3])


def _over_heads(products, q, k, families, query_mask, key_mask, **settings):
    """Products (H, F + 1, F + 1), a head and some sequences at a time, on threads."""
    *leading, H, n, d = q.shape
    B = math.prod(leading)
    q, k = q.reshape(B, H, n, d), k.reshape(B, H, *k.shape[-2:])
    masks = [flat_mask(mask, (*leading, H), B, H) for mask in (query_mask, key_mask)]
    step = max(CHUNK // (n * max(k.shape[-2], sum(family.count for family in families))), 1)

    def part(piece):
        h, sequences = piece
        own, J = of_heads(families, [h]), 0.0
        for i in cut(sequences.stop - sequences.start, step) or [slice(0, 0)]:
            some = slice(sequences.start + i.start, sequences.start + i.stop), slice(h, h + 1)
            J = J + products(q[some], k[some], own, *(x if x is None else x[some] for x in masks), **settings)
        return J

    share = max(math.ceil(B / max(PARTS // H, 1)), 1)
    pieces = [(h, sequences) for h in range(H) for sequences in cut(B, share) or [slice(0, 0)]]
    parts = spread(part, pieces)
    each = len(pieces) // H
    return np.concatenate([sum(parts[i : i + each]) for i in range(0, len(parts), each)])


def _regression_products(q, k, families, query_mask, key_mask, *, n_iter, epsilon):
    q, k = keep_tokens(q, query_mask), keep_tokens(k, key_mask)
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    segments = scale(attention_scores(q, k), n_iter=n_iter - 1, epsilon=epsilon, **masks)
    return product(features_and_dual(q, k, families, scaled_duals(segments, epsilon).query, **masks))


def features_and_dual(q, k, families, dual, *, query_mask, key_mask):
    """X: features, and the dual they are to explain, (..., F + 1, n); zero where a query has no key to meet."""
    features = [fast_features(family, q, k, query_mask, key_mask) for family in families]
    X = array_namespace(q).concat([*features, centred(dual, query_mask)[..., None, :]], axis=-2)
    return keep(X, of_features(queries_with_a_key(query_mask, key_mask)))


def product(X):
    """X Xᵀ, summed over tokens and sequences: (..., H, F + 1, n) -> (H, F + 1, F + 1), float64 on the host."""
    X = np.moveaxis(to_numpy(X), (-3, -2), (0, 1))  # float32 sums over many tokens would lose the small slices
    X = X.astype(np.float64, order="C").reshape(*X.shape[:2], -1)
    return X @ X.mT
