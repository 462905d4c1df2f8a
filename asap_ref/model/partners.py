"""Who belongs to whom: the loss of a plan by true partners, and the partners that a plan names.

    loss = -mean of log P_ij over the true pairs,     log P_ij = (f_i + g_j + S_ij) / epsilon

It is formed from the duals, so that a pair held impossible still has a gradient. Partners are integers (B, n): the
place in the second set of each point of the first, negative where it has none.

Bins, for points without a partner (matching.py), are n more keys and m more queries. A point may go to any of them,
which are alike: its weight is shared among them.

Shapes: scores and plan (B, n, m), of bins too (B, n + m, m + n).
"""

from __future__ import annotations

import numpy as np

from asap_ref.fast.scaling import scaled_sinkhorn_vjp
from asap_ref.support.arrays import array_namespace, to_numpy
from asap_ref.support.contracts import operator
from asap_ref.support.masks import valid_pairs


def check_partners(partners, pairs):
    """Raise unless each point of the first has one number, a place in the second or a negative one, and some do."""
    expected, m = tuple(pairs.first.shape[:2]), pairs.second.shape[1]
    if tuple(partners.shape) != expected:
        raise ValueError(f"matcher: partners has shape {tuple(partners.shape)}, expected {expected}, one a point")
    xp = array_namespace(partners)
    if not xp.isdtype(partners.dtype, "integral"):
        raise TypeError(f"matcher: partners must be integers, got {partners.dtype}")
    if bool(xp.any(partners >= m)):
        raise ValueError(
            f"matcher: partners goes up to {int(xp.max(partners))}, expected at most {m - 1}, the last"
        )
    if not bool(xp.any(partners >= 0)):
        raise ValueError("matcher: no point has a partner, so there is nothing to learn from")


@operator
def log_plan_loss_vjp(
    scores: "... n m", target: "... n m", *, n_iter, epsilon=1.0, query_mask=None, key_mask=None
):
    """Negative log of Sinkhorn's plan at the true pairs, a mean, and ``vjp(d_loss) -> (d_scores,)``.

    The logarithm of the plan is linear in scores and duals, ``(f_i + g_j + S_ij) / epsilon``, so its gradient needs no
    plan, which may have underflown; what reaches the duals goes back through all iterations (fast/scaling.py). Derived.

    Parameters
    ----------
    scores, target : arrays (..., n, m)
        Target is the weight of each pair in the mean; zero at pairs that are not meant, or masked.
    n_iter : int
        Sinkhorn's iterations; 0 is a row softmax.
    """
    xp = array_namespace(scores, target)
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    (f, g), duals_vjp = scaled_sinkhorn_vjp(scores, n_iter=n_iter, epsilon=epsilon, **masks)
    valid = valid_pairs(**masks)
    share = target / xp.sum(target)
    log_plan = (f[..., :, None] + (g[..., None, :] + scores)) / epsilon
    log_plan = log_plan if valid is None else xp.where(valid, log_plan, xp.zeros_like(log_plan))

    def vjp(d_loss):
        d_scores = share * (-d_loss / epsilon)
        (through_duals,) = duals_vjp((xp.sum(d_scores, axis=-1), xp.sum(d_scores, axis=-2)))
        return (d_scores + through_duals,)

    return -xp.sum(share * log_plan), vjp


def target_of(partners, shape, dtype, *, bins=False, first_mask=None, second_mask=None):
    """The weight of each pair in the loss, (B, n, m), or with bins (B, n + m, m + n).

    Parameters
    ----------
    partners : integer array (B, n)
        Which of the second each of the first is; negative where it is none.
    shape, dtype : (n, m), dtype
        Of a plan without bins.
    """
    xp, (n, m) = array_namespace(partners), shape
    matched = partners[..., None] == xp.arange(m, dtype=partners.dtype, device=partners.device)  # (B, n, m)
    real = valid_pairs(first_mask, second_mask)
    matched = matched if real is None else matched & real
    if not bins:
        return xp.astype(matched, dtype)
    lost = ~xp.any(matched, axis=-1) if first_mask is None else first_mask & ~xp.any(matched, axis=-1)
    alone = ~xp.any(matched, axis=-2) if second_mask is None else second_mask & ~xp.any(matched, axis=-2)
    onto = _shared_weight(first_mask, (lost.shape[0], n), partners, dtype)  # bins on the key side
    beside = _shared_weight(second_mask, (lost.shape[0], m), partners, dtype)
    upper = xp.concat([xp.astype(matched, dtype), xp.astype(lost, dtype)[..., None] * onto[..., None, :]], axis=-1)
    corner = xp.zeros((lost.shape[0], m, n), dtype=dtype, device=partners.device)
    lower = xp.concat([beside[..., :, None] * xp.astype(alone, dtype)[..., None, :], corner], axis=-1)
    return xp.concat([upper, lower], axis=-2)


def _shared_weight(mask, shape, like, dtype):
    xp = array_namespace(like)
    real = xp.ones(shape, dtype=dtype, device=like.device) if mask is None else xp.astype(mask, dtype)
    return real / xp.maximum(xp.sum(real, axis=-1, keepdims=True), xp.ones_like(real[..., :1]))


def partners_of(plan):
    """Who each point of the first goes to: plan (B, n, m) -> integers (B, n), -1 where most of its row is in bins.

    Rows sum to one, but for what bins hold, which are left out of the plan.

    Examples
    --------
    >>> partners_of(np.asarray([[[0.9, 0.1], [0.2, 0.1]]]))
    array([[ 0, -1]])
    """
    plan = to_numpy(plan)
    best, none = np.argmax(plan, axis=-1), 1 - np.sum(plan, axis=-1)
    return np.where(none > np.max(plan, axis=-1), -1, best)
