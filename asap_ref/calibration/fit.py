"""Calibration: the weights of the amortizer, from queries and keys and a Sinkhorn teacher.

Three objectives, on the same features:

    regression   ridge regression to the closure-ready dual f^(T-1), whose two-sided c-transform is exactly the plan of
                 a teacher of T iterations (paper)
    kl           from there, L-BFGS on KL(P_teacher || P_hat) (paper)
    dual         from there, L-BFGS on the concave semi-dual: no teacher, the optimum is the converged plan (derived)

Everything the data are needed for is a sum over batches (sources.py), so batches stream in bounded memory, here or
on the workers of a cluster (cluster.py).

Shapes: q (..., H, n, d), k (..., H, m, d), features (..., H, F, n), target (..., H, n), weights (H, F).
"""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.optimize import minimize

from asap_ref.calibration.cluster import on_cluster
from asap_ref.calibration.objectives import dual_loss_and_gradient, kl_loss_and_gradient
from asap_ref.calibration.slice_choice import COUNTS, candidate_counts, fewest, held_out_errors, split_statistics
from asap_ref.calibration.sources import Total, in_process
from asap_ref.extensions.mlp import Hidden, train_hidden
from asap_ref.method.amortizer import Amortizer
from asap_ref.method.features import count_features, dual_features
from asap_ref.method.masks import centred, keep_tokens
from asap_ref.method.regression import SufficientStatistics, select
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.slices import slice_directions
from asap_ref.method.transport import attention_scores, transport_plan
from asap_ref.support.arrays import array_namespace, is_array, to_numpy
from asap_ref.support.settings import check_choice, check_count, check_epsilon, check_positive

OBJECTIVES = ("regression", "kl", "dual")


def fit_amortizer(
    batches,
    *,
    n_slices=32,
    n_iter=20,
    epsilon=1.0,
    objective="regression",
    cumulants=True,
    quadratic=0,
    moments=False,
    hidden=0,
    kind="orthogonal",
    candidates=None,
    tolerance=0.05,
    ridge=1e-4,
    max_iter=50,
    refine=0,
    seed=0,
    client=None,
    progress=False,
):
    """Calibrate an amortizer on queries and keys, against a Sinkhorn teacher of n_iter iterations.

    Parameters
    ----------
    batches : iterable of (q, k) or (q, k, query_mask, key_mask)
        q (batch, H, n, d) and k (batch, H, m, d), of any array module; masks as in attention, or None. Sizes may
        differ from batch to batch. Only valid tokens count. Regression reads them once, one in memory; kl and dual
        go through them again at each step, so they need a list or another iterable that can be restarted. Data that
        are not in memory are read batch by batch: give paths of .npz files with arrays q, k (query_mask, key_mask),
        a zarr group of those arrays or its path, or a tuple of zarr or dask arrays; see `asap_ref.sources.resolved`.
    n_slices : int or "auto"
        L, the number of slices. "auto" takes the smallest of 4, 8, 16, 32 and 64 (and at most ``candidates``, or d
        with pca) whose error on held-out data is within ``tolerance`` of the best: every tenth sequence of a batch
        is held out, or the last of a shorter one, and the amortizer is then fitted on all. The error is that of the
        regression, relative, in root mean square over the heads; ``amortizer.slice_errors`` has those of all.
    n_iter : int
        T, the teacher's iterations; at least 1. The target is its closure-ready dual f^(T-1).
    epsilon : float
        Regularisation of the teacher.
    objective : {"regression", "kl", "dual"}
        See the top of the module.
    cumulants : bool
        Whether to use the second-cumulant features (derived).
    quadratic : int
        Rank r of the quadratic features (derived); 0 leaves them out. They are many, so they want many calibration
        tokens, and `compile_model` uses them; at inference they cost next to nothing. Below d, their basis is the
        r leading eigenvectors of the pooled covariance of the first batch's queries and keys, head by head; else
        the axes.
    moments : bool
        Whether the quadratic features come with more, whose coefficients follow the means and covariances of the
        sequence (derived): 3 r² + r (r + 1) of them, at little more cost at inference.
    hidden : int
        Units of a hidden layer (derived, see mlp.py); 0 leaves it out. Its inputs are the slices, the cumulants and the
        linear ones of the quadratic features, which are kept in memory while it is trained, by ``max_iter`` L-BFGS
        iterations a head. The batches are gone through three times.
    kind : {"orthogonal", "gaussian", "pca"}
        Slices as in `slice_directions`, shared by the heads; or the eigenvectors just named, then at most d.
    candidates : int, optional
        Draw that many slices and keep for each head the n_slices that explain most of its dual (derived): a better
        map at the same inference cost.
    tolerance : float
        By what share the error may exceed the best for fewer slices, if n_slices is "auto".
    ridge : float
        Penalty, relative to each feature's second moment (ours).
    max_iter : int
        L-BFGS iterations of kl, of dual, and of the hidden layer.
    refine : int
        Sinkhorn iterations after the two-sided transform, kept with the amortizer.
    seed : int
        Of the slices and of the hidden layer.
    client : dask.distributed.Client, optional
        Go through the batches on the workers of this cluster, which hold a batch for each of their threads, or
        their share of all for kl and dual; the solve and the L-BFGS steps stay here. The result is the same up to
        rounding. Needs ``asap-ref[distributed]``.
    progress : bool
        Whether to show Dask's progress bar, one for each sum over the batches.

    Returns
    -------
    Amortizer

    Raises
    ------
    TypeError, ValueError
        On wrong settings, empty batches, batches that disagree in heads or dimension, an iterator that is
        spent after one pass where several are needed, or batches of one sequence each, which leave none to hold out,
        if n_slices is "auto".

    Notes
    -----
    One Sinkhorn run a batch, O(T n m), dominates; the statistics are O(H F²) and the solve O(H F³).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 64, 2, 6, 4))  # 64 sequences, 2 heads, 6 tokens, dimension 4
    >>> amortizer = fit_amortizer([(q, k)], n_slices=8, n_iter=10)
    >>> amortizer.weights.shape
    (2, 11)
    """
    check_count(n_iter, "n_iter", "fit_amortizer", least=1)
    check_count(quadratic, "quadratic", "fit_amortizer", least=0)
    if moments and not quadratic:
        raise ValueError(
            "fit_amortizer: moments=True needs quadratic features; give quadratic=r, the rank of their basis"
        )
    check_count(max_iter, "max_iter", "fit_amortizer", least=1)
    check_count(refine, "refine", "fit_amortizer", least=0)
    epsilon = check_epsilon(epsilon, "fit_amortizer")
    check_choice(objective, "objective", "fit_amortizer", OBJECTIVES)
    check_choice(kind, "kind", "fit_amortizer", ("orthogonal", "gaussian", "pca"))
    if not ridge >= 0:
        raise ValueError(f"fit_amortizer: ridge must be at least 0, got {ridge}")
    auto = isinstance(n_slices, str)
    if auto and n_slices != "auto":
        raise ValueError(f"fit_amortizer: n_slices must be an integer or 'auto', got {n_slices!r}")
    tolerance = check_positive(tolerance, "tolerance", "fit_amortizer", or_zero=True)
    if candidates is not None:
        check_count(candidates, "candidates", "fit_amortizer", least=COUNTS[0] if auto else n_slices)
    check_count(hidden, "hidden", "fit_amortizer", least=0)
    restarts = objective != "regression" or hidden > 0
    if client is None:
        source = in_process(batches, restarts=restarts)
    else:
        source = on_cluster(batches, client, restarts=restarts, progress=progress)
    first = source.first()
    if first is None:
        raise ValueError("fit_amortizer: batches is empty; give at least one (q, k)")
    d = _with_masks(first)[0].shape[-1]
    rank = min(quadratic, d)
    principal = principal_directions(*_with_masks(first)) if kind == "pca" or 0 < rank < d else None  # (H, d, d)
    pool = candidates or ((min(d, COUNTS[-1]) if kind == "pca" else COUNTS[-1]) if auto else n_slices)
    if kind == "pca":
        if pool > d:
            raise ValueError(f"fit_amortizer: there are {d} pca directions, one a dimension, got n_slices {pool}")
        directions = principal[..., :pool]
    else:
        directions = slice_directions(d, pool, kind=kind, seed=seed)
    # of full rank any basis spans the same features: then the axes, which do not depend on the data
    basis = None if rank == 0 else np.eye(d) if rank == d else principal[..., :rank]
    settings = dict(cumulants=cumulants, basis=basis, moments=bool(moments), hidden=None)

    reduced = split_statistics if auto else SufficientStatistics.of
    statistics = source.total(
        partial(regression_statistics, directions, settings, n_iter, epsilon, reduced=reduced)
    )
    slice_errors = None
    if auto:
        fit, held_out = statistics
        statistics = fit + held_out
        if statistics.count > 0 == min(fit.count, held_out.count):
            raise ValueError(
                "fit_amortizer: n_slices='auto' holds out a tenth of the sequences of each batch, and these leave none "
                "to fit on or to judge by; give batches of several sequences, or a number of slices"
            )
    if statistics.count == 0:
        raise ValueError("fit_amortizer: batches hold no valid token")
    if auto:
        counts = candidate_counts(pool)
        errors = held_out_errors(fit, held_out, pool, counts, ridge=ridge, chosen=candidates is not None)
        n_slices, slice_errors = fewest(counts, errors, tolerance), np.stack([counts, errors], axis=-1)
    if candidates is not None:
        picked = select(statistics, pool, n_slices)  # (H, L)
        shared = np.broadcast_to(directions, (len(picked), *directions.shape[-2:]))
        directions = np.take_along_axis(shared, picked[:, None, :], axis=-1)  # (H, d, L)
        statistics = statistics.of_slices(picked, pool)
    elif n_slices < pool:
        directions = directions[..., :n_slices]
        statistics = statistics.of_slices(np.tile(np.arange(n_slices), (len(statistics.gram), 1)), pool)
    weights = statistics.ridge(ridge)
    if hidden:
        left = partial(residuals, directions, settings, n_iter, epsilon, weights)
        settings |= {"hidden": train_hidden(source.total(left), hidden, seed=seed, max_iter=max_iter)}
        statistics = source.total(partial(regression_statistics, directions, settings, n_iter, epsilon))
        weights = statistics.ridge(ridge)
    if objective != "regression":
        one_batch = partial(loss_and_gradient, directions, settings, objective, n_iter, epsilon)
        weights = descend(source, one_batch, weights, statistics, max(ridge, 1e-9), max_iter)
    return Amortizer(
        directions,
        weights,
        **settings,
        epsilon=epsilon,
        n_iter=n_iter,
        objective=objective,
        refine=refine,
        r_squared=statistics.r_squared(weights),
        statistics=statistics,
        slice_errors=slice_errors,
    )


def principal_directions(q, k, query_mask, key_mask):
    """Eigenvectors of the pooled covariance of queries and keys, largest first, head by head: NumPy (H, d, d)."""
    covariance = 0.0
    for x, mask in ((q, query_mask), (k, key_mask)):
        x = to_numpy(keep_tokens(x, mask)).astype(np.float64)
        valid = np.broadcast_to(True if mask is None else to_numpy(mask), x.shape[:-1])
        # (..., H, n, d) -> (H, tokens, d)
        x = np.moveaxis(x, -3, 0).reshape(x.shape[-3], -1, x.shape[-1])
        valid = np.moveaxis(valid, -2, 0).reshape(len(x), -1, 1)
        count = np.maximum(valid.sum(-2, keepdims=True), 1)
        spread = (x - (x * valid).sum(-2, keepdims=True) / count) * valid
        covariance = covariance + spread.mT @ spread / count
    return np.linalg.eigh(covariance)[1][..., ::-1]


# ------------------------------------------------------------------------------------------- one batch at a time


def regression_statistics(directions, settings, n_iter, epsilon, batch, *, reduced=SufficientStatistics.of):
    """Sufficient statistics of one batch: features against the closure-ready dual."""
    features, target, mask = regression_problem(directions, settings, n_iter, epsilon, batch)
    return reduced(features, target, mask=mask)


def residuals(directions, settings, n_iter, epsilon, weights, batch):
    """Inputs of the hidden layer, what the linear map leaves of the dual, and the mask: [(x, r, mask)], NumPy."""
    features, target, mask = (
        x if x is None else to_numpy(x) for x in regression_problem(directions, settings, n_iter, epsilon, batch)
    )
    features, target = features.astype(np.float64), target.astype(np.float64)
    rank = 0 if settings["basis"] is None else settings["basis"].shape[-1]
    used = count_features(directions.shape[-1], settings["cumulants"], 0) + rank  # the quadratic family begins so
    left = target - (weights[:, None, :] @ features)[..., 0, :]
    return [(features[..., :used, :], left, mask if mask is None else np.broadcast_to(mask, left.shape))]


def regression_problem(directions, settings, n_iter, epsilon, batch):
    """Features (..., H, F, n) of a batch, the closure-ready dual (..., H, n), and the mask of the queries."""
    q, k, *masks = _with_masks(batch)
    masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
    features = _features(q, k, directions, settings, masks)
    S = _scores(q, k, masks)
    target = centred(sinkhorn(S, n_iter=n_iter - 1, epsilon=epsilon, **masks).query, masks["query_mask"])
    return features, target, masks["query_mask"]


def loss_and_gradient(directions, settings, objective, n_iter, epsilon, weights, batch):
    """Loss of one batch, summed over sequences and heads, its gradient (H, F), and the number of sequences."""
    q, k, *masks = _with_masks(batch)
    masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
    xp = array_namespace(q, k)
    features = _features(q, k, directions, settings, masks)
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


def descend(source, one_batch, weights, statistics, pull, max_iter):
    """Minimise kl or dual over the weights by L-BFGS: (H, F).

    In coordinates z in which the features are uncorrelated, w = W z: the problem is then as round as the data
    allow. The small penalty on z makes the optimum the only one; it is that of the ridge.
    """
    size = np.sqrt(np.maximum(np.diagonal(statistics.gram, axis1=-2, axis2=-1), np.finfo(float).tiny))
    correlation = statistics.gram / (size[..., :, None] * size[..., None, :])
    lower = np.linalg.cholesky(correlation + pull * np.eye(size.shape[-1]))
    tokens = np.sqrt(statistics.count)
    whiten = tokens * np.linalg.inv(lower).mT / size[..., :, None]  # (H, F, F): w = whiten z

    def evaluate(z):
        z = z.reshape(weights.shape)
        w = (whiten @ z[..., None])[..., 0]
        loss, d_w, count = source.total(partial(one_batch, w))
        d_z = (whiten.mT @ d_w[..., None])[..., 0] / count + pull * z
        return loss / count + pull * np.sum(z * z) / 2, d_z.ravel()

    start = np.linalg.solve(whiten, weights[..., None])[..., 0].ravel()
    found = minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": max_iter, "gtol": 1e-9})
    return (whiten @ found.x.reshape(weights.shape)[..., None])[..., 0]


def _with_masks(batch):
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


def _features(q, k, directions, settings, masks):
    xp = array_namespace(q, k)
    place = partial(xp.asarray, dtype=q.dtype, device=q.device)
    basis = None if settings["basis"] is None else place(settings["basis"])
    hidden = None if settings["hidden"] is None else Hidden(*map(place, settings["hidden"]))
    return dual_features(q, k, place(directions), **{**settings, "basis": basis, "hidden": hidden}, **masks)


def _scores(q, k, masks):
    return attention_scores(keep_tokens(q, masks["query_mask"]), keep_tokens(k, masks["key_mask"]))
