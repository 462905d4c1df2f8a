"""What an attention does to its tokens: sinks, entropy, marginals, and how alike the tokens become with depth.

    sink score      largest column mass of a plan over its fair share n'/m'; 1 when doubly stochastic, m' at most
    entropy         of a row, in nats, mean over the queries; log m' when attention is uniform
    rank residual   |X - 1 mean(X)ᵀ| / |X|: 0 when all tokens are the same vector, so that X has rank one
    iterations      how many Sinkhorn iterations from zero come as close to the converged plan
    marginal error  how far a plan is from its row and column sums: after Sinkhorn, how far it has converged

Shapes: plan P and scores S (..., n, m), tokens X (..., n, w); results have one number a problem (...).
"""

from __future__ import annotations

from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import transport_plan
from asap_ref.model.blocks import block
from asap_ref.model.embedding import embed_vjp
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator
from asap_ref.support.masks import column_mass, keep, valid_pairs
from asap_ref.support.settings import check_count


@operator
def marginal_error(plan: "... n m", *, query_mask=None, key_mask=None):
    """Largest deviation of a plan's row sums from 1 and of its column sums from n'/m'.

    Parameters
    ----------
    plan
        As `transport_plan` gives it.

    Returns
    -------
    (array (...), array (...))
        Row and column error. After `sinkhorn` the first is rounding; the second says how far it has converged.

    Examples
    --------
    >>> import numpy as np
    >>> rows, columns = marginal_error(np.asarray([[0.5, 0.5], [0.75, 0.25]]))
    >>> float(rows), float(columns)
    (0.0, 0.25)
    """
    xp = array_namespace(plan)
    pairs = valid_pairs(query_mask, key_mask)  # a query that has no key to meet counts as masked
    rows = xp.abs(xp.sum(plan, axis=-1) - 1)
    columns = xp.abs(xp.sum(plan, axis=-2) - column_mass(plan, query_mask, key_mask))
    if pairs is not None:
        rows, columns = keep(rows, xp.any(pairs, axis=-1)), keep(columns, xp.any(pairs, axis=-2))
    return xp.max(rows, axis=-1), xp.max(columns, axis=-1)


@operator
def sink_score(plan: "... n m", *, query_mask=None, key_mask=None):
    """Largest column sum of a plan, relative to the fair share n'/m'.

    O(n m). Attention sinks: Xiao et al. 2023 (StreamingLLM). The measure is ours (derived).

    Parameters
    ----------
    plan : array (..., n, m)
        Zero at masked pairs.

    Returns
    -------
    array (...)
        1 for a doubly-stochastic plan, m' when every query attends to one key alone.

    Examples
    --------
    >>> import numpy as np
    >>> sink_score(np.asarray([[0.9, 0.1], [0.8, 0.2]])).round(6)
    np.float64(1.7)
    """
    xp = array_namespace(plan)
    columns = xp.sum(plan, axis=-2)  # (..., m)
    return xp.max(columns / column_mass(plan, query_mask, key_mask), axis=-1)


@operator
def attention_entropy(plan: "... n m", *, query_mask=None):
    """Entropy of a plan's rows in nats, the mean over the valid queries.

    Parameters
    ----------
    plan : array (..., n, m)
        Rows of valid queries sum to one; zero at masked pairs.

    Returns
    -------
    array (...)
        0 when every query attends to one key, log m' when to all alike. 0 where no query is valid.

    Examples
    --------
    >>> import numpy as np
    >>> attention_entropy(np.full((3, 4), 0.25)).round(6), np.log(4).round(6)
    (np.float64(1.386294), np.float64(1.386294))
    """
    xp = array_namespace(plan)
    log = xp.log(xp.where(plan > 0, plan, xp.ones_like(plan)))  # 0 log 0 is 0
    rows = -xp.sum(plan * log, axis=-1)  # (..., n)
    if query_mask is None:
        return xp.mean(rows, axis=-1)
    valid = xp.astype(xp.broadcast_to(query_mask, rows.shape), rows.dtype)
    count = xp.sum(valid, axis=-1)
    return xp.sum(valid * rows, axis=-1) / xp.where(count > 0, count, xp.ones_like(count))


@operator
def rank_residual(tokens: "... n w", *, mask: "... n" = None):
    """How far tokens are from being all the same: |X - 1 mean(X)ᵀ| / |X|, Frobenius norms.

    O(n w). Source: Dong, Cordonnier & Loukas 2021, who subtract the best single row; in the Frobenius norm that
    is the mean.

    Parameters
    ----------
    tokens : array (..., n, w)
    mask
        True at valid tokens; the others do not count.

    Returns
    -------
    array (...)
        Between 0, one vector n times over (X has rank one), and 1. 0 where the tokens are all zero.

    Examples
    --------
    >>> import numpy as np
    >>> rank_residual(np.ones((3, 2))), rank_residual(np.asarray([[1.0], [-1.0]]))
    (np.float64(0.0), np.float64(1.0))
    """
    xp = array_namespace(tokens)
    if mask is None:
        valid = xp.ones_like(tokens[..., :1])
    else:
        valid = xp.astype(xp.broadcast_to(mask, tokens.shape[:-1])[..., None], tokens.dtype)
        tokens = xp.where(valid > 0, tokens, xp.zeros_like(tokens))
    count = xp.sum(valid, axis=-2, keepdims=True)
    mean = xp.sum(tokens, axis=-2, keepdims=True) / xp.where(count > 0, count, xp.ones_like(count))
    rest = xp.sum((valid * (tokens - mean)) ** 2, axis=(-2, -1))
    size = xp.sum(tokens**2, axis=(-2, -1))
    return xp.sqrt(rest / xp.where(size > 0, size, xp.ones_like(size)))


def rank_residual_by_depth(model, inputs):
    """Rank residual of the tokens that enter the model, and of those that leave each block.

    Parameters
    ----------
    model : Transformer
    inputs : numpy.ndarray (B, ...)

    Returns
    -------
    list of arrays (B,)
        n_layers + 1 of them.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Architecture, Attention, Transformer
    >>> model = Transformer.create(Architecture(n_layers=3), Attention("softmax"))
    >>> [r.shape for r in rank_residual_by_depth(model, np.zeros((2, 8, 8)))]
    [(2,), (2,), (2,), (2,)]
    """
    x, mask, _ = embed_vjp(model.params["embedding"], model.place(inputs), model.architecture)
    residuals = [rank_residual(x, mask=mask)]
    for i, attention in enumerate(model.attentions):
        x = block(x, model.params[f"block{i}"], attention, model.architecture.n_heads, mask)
        residuals.append(rank_residual(x, mask=mask))
    return residuals


@operator
def equivalent_iterations(
    scores: "... n m",
    plan: "... n m",
    reference: "... n m",
    *,
    epsilon=1.0,
    most=50,
    query_mask=None,
    key_mask=None,
):
    """How many Sinkhorn iterations from a zero dual come as close to a reference plan as the given plan is.

    O(most n m). The measure is ours (derived).

    Parameters
    ----------
    plan : array (..., n, m)
        The plan to be rated, ASAP's for instance.
    reference : array (..., n, m)
        What it should be: the plan of the teacher, or the converged one.
    most : int
        Where to stop looking.

    Returns
    -------
    integer array (...)
        The smallest T whose plan has a Frobenius distance to the reference that is no larger; ``most`` where none
        up to there has. One is what the two-sided transform of a zero dual costs, and the least.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.random.default_rng(0).standard_normal((6, 6))
    >>> zero = np.zeros(6)
    >>> plans = [transport_plan(scores, sinkhorn(scores, n_iter=t, init=zero)) for t in (3, 50)]
    >>> int(equivalent_iterations(scores, *plans))
    3
    """
    check_count(most, "most", "equivalent_iterations", least=1)
    xp = array_namespace(scores)
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)

    def distance(P):
        return xp.sqrt(xp.sum((P - reference) ** 2, axis=(-2, -1)))

    # the last bits of a plan that went another way round do not count as iterations
    target = distance(plan) * (1 + 1e-6)
    f = xp.zeros_like(scores[..., 0])  # (..., n)
    needed = xp.full(scores.shape[:-2], most, dtype=xp.int64, device=scores.device)
    found = needed < 0
    for t in range(1, most + 1):
        duals = sinkhorn(scores, n_iter=1, init=f, **settings)
        f = duals.query
        reached = distance(transport_plan(scores, duals, **settings)) <= target
        needed = xp.where(reached & ~found, xp.full_like(needed, t), needed)
        found = found | reached
        if bool(xp.all(found)):
            break
    return needed
