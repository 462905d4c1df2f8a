"""What calibration asks of one batch: the statistics of its regression, or a loss and its gradient.

A batch is (q, k) or (q, k, query_mask, key_mask), of any array module. What comes out is small, and NumPy.

Shapes: q (..., H, n, d), k (..., H, m, d), features (..., H, F, n), target (..., H, n), weights (H, F).
"""

from __future__ import annotations

import numpy as np

from asap_ref.calibration.objectives import dual_loss_and_gradient, kl_loss_and_gradient
from asap_ref.calibration.sources import Total
from asap_ref.method.features import dual_features
from asap_ref.method.masks import centred, keep_tokens
from asap_ref.method.regression import SufficientStatistics
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import attention_scores, transport_plan
from asap_ref.support.arrays import array_namespace, is_array, to_numpy
from asap_ref.support.trees import place_like


def regression_statistics(families, n_iter, epsilon, batch, *, reduced=SufficientStatistics.of):
    """Sufficient statistics of one batch: features against the closure-ready dual."""
    features, target, mask = regression_problem(families, n_iter, epsilon, batch)
    return reduced(features, target, mask=mask)


def regression_problem(families, n_iter, epsilon, batch):
    """Features (..., H, F, n) of a batch, the closure-ready dual (..., H, n), and the mask of the queries."""
    q, k, *masks = with_masks(batch)
    masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
    features = _features(q, k, families, masks)
    S = _scores(q, k, masks)
    target = centred(sinkhorn(S, n_iter=n_iter - 1, epsilon=epsilon, **masks).query, masks["query_mask"])
    return features, target, masks["query_mask"]


def objective_of_batch(families, objective, n_iter, epsilon, weights, batch):
    """Loss of one batch, summed over sequences and heads, its gradient (H, F), and the number of sequences."""
    q, k, *masks = with_masks(batch)
    masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
    xp = array_namespace(q, k)
    features = _features(q, k, families, masks)
    w = place_like(q, weights)
    f_hat = (w[:, None, :] @ features)[..., 0, :]
    S = _scores(q, k, masks)
    if objective == "kl":
        teacher = transport_plan(S, sinkhorn(S, n_iter=n_iter, epsilon=epsilon, **masks), epsilon=epsilon, **masks)
        loss, d_f_hat = kl_loss_and_gradient(S, f_hat, xp.sum(teacher, axis=-2), epsilon=epsilon, **masks)
    else:
        loss, d_f_hat = dual_loss_and_gradient(S, f_hat, epsilon=epsilon, **masks)
    d_weights = to_numpy((features @ d_f_hat[..., None])[..., 0]).astype(np.float64)  # (..., H, F)
    loss = to_numpy(loss).astype(np.float64)
    return Total(loss.sum(), d_weights.reshape(-1, *d_weights.shape[-2:]).sum(0), loss.size // loss.shape[-1])


def check_batches(batches, function):
    """Raise where one batch was given for a list of them: its arrays would be taken for batches themselves."""
    on_disk = isinstance(batches, tuple) and all(hasattr(x, "chunks") for x in batches)  # zarr, dask
    if isinstance(batches, tuple | list) and len(batches) in (2, 4) and is_array(batches[0]) and not on_disk:
        raise TypeError(f"{function}: batches is a list of batches, got the arrays of one; give [(q, k)]")


def with_masks(batch):
    """Check a batch, and return q, k, query_mask and key_mask; masks that are not there are None."""
    stacked = is_array(batch) and batch.shape[:1] == (2,)
    if not stacked and (not isinstance(batch, tuple | list) or len(batch) not in (2, 4)):
        got = f"{len(batch)} of them" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(
            f"fit_amortizer: batches must yield tuples (q, k) or (q, k, query_mask, key_mask), got {got}"
        )
    for name, x in zip("qk", batch, strict=False):
        if not is_array(x) or x.ndim < 3:
            got = tuple(x.shape) if is_array(x) else type(x).__name__
            raise ValueError(
                f"fit_amortizer: {name} of a batch must be an array (batch, heads, tokens, d), got {got}"
            )
    return (*batch, None, None) if len(batch) == 2 else tuple(batch)


def _features(q, k, families, masks):
    return dual_features(q, k, place_like(q, families), **masks)


def _scores(q, k, masks):
    return attention_scores(keep_tokens(q, masks["query_mask"]), keep_tokens(k, masks["key_mask"]))
