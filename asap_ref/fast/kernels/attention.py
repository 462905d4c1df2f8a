"""Four attentions from two kernels and a prediction.

    softmax      attend
    Sinkhorn     lse onto queries, then T times lse onto keys and lse onto queries, the last of which is attend
    ASAP         predict, lse onto keys, attend;    each refining iteration: two lse more before the end, and between
                 them one pass over the dual, if the iteration is over-relaxed
    one-sided    predict the key dual, attend

The last half step of Sinkhorn is on the query dual, and with it P_ij = softmax_j((S_ij + g_j) / epsilon): a row
softmax, so that the query dual is never formed. Every function gives None where the array form is to be taken, because
the kernels cannot hold the problem or would be slower. ``found`` is where a non-finite result is reported to
(finite.py), or None.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p) -> (..., n, p); padding may hold anything.
"""

from __future__ import annotations

import math

from asap_ref.fast.kernels.launch import Problems
from asap_ref.support.arrays import one_pass

# Sinkhorn forms the scores again in every half step, 2 d operations an entry, where the array form reads what it has
# stored. Below LAUNCH_BOUND entries launches are what counts, and the kernels need half of them; above STORABLE the
# array form has no room. Both are estimates from the rates of an H100 at d = 64, not measured.
LAUNCH_BOUND, STORABLE = 2**24, 2**30


def pays_for_sinkhorn(q, k, n_iter):
    """Say whether n_iter iterations are better done by the kernels than in the array form."""
    entries = math.prod(q.shape[:-1]) * k.shape[-2]
    return n_iter == 0 or not LAUNCH_BOUND < entries <= STORABLE


def softmax_attention(q, k, v, *, query_mask=None, key_mask=None, found=None):
    """`method.attention.softmax_attention`, in one launch."""
    return attention_from_key_dual(q, k, v, None, query_mask=query_mask, key_mask=key_mask, found=found)


def sinkhorn_where_it_pays(q, k, v, *, n_iter=20, **settings):
    """`sinkhorn_attention`, or None where the array form is better."""
    return sinkhorn_attention(q, k, v, n_iter=n_iter, **settings) if pays_for_sinkhorn(q, k, n_iter) else None


def sinkhorn_attention(q, k, v, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None, found=None):
    """`method.attention.sinkhorn_attention`, in 2T + 1 launches."""
    problems = Problems(q, k, v, query_mask, key_mask)
    if not problems.fit:
        return None
    g = None
    for _ in range(n_iter):
        f = problems.query_dual(g, epsilon)
        g = problems.key_dual(f, epsilon)
    return problems.attend(g, epsilon, found)


def attention_from_query_dual(
    q, k, v, f, *, epsilon=1.0, refine=0, omega=1.0, query_mask=None, key_mask=None, found=None
):
    """Attention from a (predicted) query dual (..., n), by its two-sided transform: two launches.

    Each of ``refine`` further iterations is two more, and where ``omega`` (H,) relaxes it a pass over the dual.
    """
    problems = Problems(q, k, v, query_mask, key_mask)
    if not problems.fit:
        return None
    g = problems.key_dual(f, epsilon)
    for _ in range(refine):
        transformed = problems.query_dual(g, epsilon)
        f = transformed if isinstance(omega, float) else _relaxed(f, transformed, omega[..., None])
        g = problems.key_dual(f, epsilon)
    return problems.attend(g, epsilon, found)


@one_pass
def _relaxed(xp, f, transformed, omega):
    return f + omega * (transformed - f)


def attention_from_key_dual(q, k, v, g, *, epsilon=1.0, query_mask=None, key_mask=None, found=None):
    """Row softmax with the key dual (..., m) as a bias: one launch."""
    problems = Problems(q, k, v, query_mask, key_mask)
    return problems.attend(g, epsilon, found) if problems.fit else None
