"""What calibration asks of one batch: the statistics of its regression, or a loss and its gradient.

A batch is (q, k) or (q, k, query_mask, key_mask), of any array module. What comes out is small, and NumPy.

Shapes: q (..., H, n, d), k (..., H, m, d), features (..., H, F, n), target (..., H, n), weights (H, F).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from asap_ref.calibration.holding_out import held_out
from asap_ref.calibration.objectives import dual_loss_and_gradient, kl_loss_and_gradient
from asap_ref.calibration.sources import Total
from asap_ref.fast.regression import regression_statistics
from asap_ref.method.features import dual_features
from asap_ref.method.masks import keep_tokens
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import attention_scores, transport_plan
from asap_ref.support.arrays import array_namespace, is_array, to_numpy
from asap_ref.support.trees import map_leaves, place_like


def statistics_of_batch(families, n_iter, epsilon, batch):
    """Sums of the regression over one batch: features against the closure-ready dual."""
    q, k, *masks = with_masks(batch)
    return _statistics(families, n_iter, epsilon, q, k, *masks)


def split_statistics_of_batch(families, n_iter, epsilon, batch):
    """Sums over the sequences of a batch to fit on, and over those held out: every tenth, or the last of fewer."""
    q, *others = with_masks(batch)
    xp, aside = array_namespace(q), held_out(q.shape[0])

    def of_side(x, side):
        if x is None or x.shape[0] == 1 < len(aside):  # one mask for all
            return x
        return xp.take(x, xp.asarray(np.flatnonzero(side), device=x.device), axis=0)

    sides = ([of_side(x, side) for x in (q, *others)] for side in (~aside, aside))
    return Total(*(_statistics(families, n_iter, epsilon, *side) for side in sides))


def _statistics(families, n_iter, epsilon, q, k, query_mask, key_mask):
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    return regression_statistics(q, k, place_like(q, families), n_iter=n_iter, epsilon=epsilon, **masks)


def objective_of_batch(families, objective, n_iter, epsilon, weights, batch):
    """Loss of one batch, summed over sequences and heads, its gradient (H, F), and the number of sequences."""
    q, k, *masks = with_masks(batch)
    masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
    xp = array_namespace(q, k)
    features = _features(q, k, families, masks)
    w = xp.asarray(weights, dtype=q.dtype, device=q.device)
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
    place = partial(array_namespace(q, k).asarray, dtype=q.dtype, device=q.device)
    return dual_features(q, k, map_leaves(place, families), **masks)


def _scores(q, k, masks):
    return attention_scores(keep_tokens(q, masks["query_mask"]), keep_tokens(k, masks["key_mask"]))
