"""Calibration: the weights of the amortizer, from queries and keys and a Sinkhorn teacher.

Three objectives, on the same features:

    regression   ridge regression to the closure-ready dual f^(T-1), whose two-sided c-transform is exactly the plan of
                 a teacher of T iterations (paper)
    kl           from there, L-BFGS on KL(P_teacher || P_hat) (paper)
    dual         from there, L-BFGS on the concave semi-dual: no teacher, the optimum is the converged plan (derived)

Everything the data are needed for is a sum over batches (sources.py) of a function of one (batch.py), so batches
stream in bounded memory, here or on the workers of a cluster (cluster.py).

Shapes: q (..., H, n, d), k (..., H, m, d), weights (H, F).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial

import numpy as np

from asap_ref.calibration.batch import check_batches, regression_statistics, with_masks
from asap_ref.calibration.cluster import on_cluster
from asap_ref.calibration.descent import descend
from asap_ref.calibration.omega import fitted_omega
from asap_ref.calibration.slice_choice import COUNTS, choose_slices, split_statistics
from asap_ref.calibration.sources import in_process
from asap_ref.method.amortizer import Amortizer
from asap_ref.method.features import FAMILIES, Slices
from asap_ref.method.masks import keep_tokens
from asap_ref.method.regression import SufficientStatistics
from asap_ref.method.slices import slice_directions
from asap_ref.support.arrays import to_numpy
from asap_ref.support.settings import (
    check_choice,
    check_count,
    check_epsilon,
    check_flag,
    check_positive,
    check_seed,
)

OBJECTIVES = ("regression", "kl", "dual")


def fit_amortizer(
    batches,
    *,
    n_slices=32,
    n_iter=20,
    epsilon=1.0,
    objective="regression",
    candidates=None,
    tolerance=0.05,
    ridge=1e-4,
    max_iter=50,
    refine=0,
    seed=0,
    client=None,
    progress=False,
    **families,
):
    """Calibrate an amortizer on queries and keys, against a Sinkhorn teacher of n_iter iterations.

    Parameters
    ----------
    batches : iterable of (q, k) or (q, k, query_mask, key_mask)
        q (batch, H, n, d) and k (batch, H, m, d), of any array module; masks as in attention, or None. Sizes may
        differ from batch to batch. Only valid tokens count. Regression reads them once, one in memory; kl and dual
        go through them again at each step, so they need a list or another iterable that can be restarted. Data that
        are not in memory are read batch by batch: give paths of .npz files with arrays q, k (query_mask, key_mask),
        a zarr group of those arrays or its path, or a tuple of zarr or dask arrays; see
        `asap_ref.calibration.sources.resolved`.
    n_slices : int or "auto"
        L, the number of slices, orthogonal as in `slice_directions`. "auto" takes the smallest of 4, 8, 16, 32 and 64
        (and at most ``candidates``) whose error on held-out data is within ``tolerance`` of the best: every tenth
        sequence of a batch is held out, or the last of a shorter one, and the amortizer is then fitted on all. The
        error is that of the regression, relative, in root mean square over the heads; ``amortizer.slice_errors`` has
        those of all.
    n_iter : int
        T, the teacher's iterations; at least 1. The target is its closure-ready dual f^(T-1).
    epsilon : float
        Regularisation of the teacher.
    objective : {"regression", "kl", "dual"}
        See the top of the module.
    candidates : int, optional
        Draw that many slices and keep for each head the n_slices that explain most of its dual (derived): a better
        map at the same inference cost.
    tolerance : float
        By what share the error may exceed the best for fewer slices, if n_slices is "auto".
    ridge : float
        Penalty, relative to each feature's second moment (ours).
    max_iter : int
        L-BFGS iterations of kl and of dual.
    refine : int
        Over-relaxed Sinkhorn iterations between the prediction and the two-sided transform, kept with the amortizer.
        How far they go, a number a head, is found on the first batch (omega.py).
    seed : int
        Of the slices.
    client : dask.distributed.Client, optional
        Go through the batches on the workers of this cluster, which hold a batch for each of their threads, or
        their share of all for kl and dual; the solve and the L-BFGS steps stay here. The result is the same up to
        rounding. Needs ``asap-ref[distributed]``.
    progress : bool
        Whether to show Dask's progress bar, one for each sum over the batches.
    **families
        Which families of features to use beside the slices, each by name (derived): ``cumulants=True``, the default;
        ``quadratic=r`` and ``moments=r``, on the r leading eigenvectors of the pooled covariance of the first batch's
        queries and keys, head by head (the axes, if r is at least d). These are many features, so they want many
        calibration tokens; at inference they cost next to nothing. A family of your own is known by its name as well,
        see `asap_ref.method.features.Family`.

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
    epsilon = check_epsilon(epsilon, "fit_amortizer")
    n_iter = check_count(n_iter, "n_iter", "fit_amortizer", least=1)
    max_iter = check_count(max_iter, "max_iter", "fit_amortizer", least=1)
    refine = check_count(refine, "refine", "fit_amortizer", least=0)
    seed = check_seed(seed, "fit_amortizer")
    progress = check_flag(progress, "progress", "fit_amortizer")
    check_choice(objective, "objective", "fit_amortizer", OBJECTIVES)
    ridge = check_positive(ridge, "ridge", "fit_amortizer", or_zero=True)
    tolerance = check_positive(tolerance, "tolerance", "fit_amortizer", or_zero=True)
    auto, pool = slices_to_draw(n_slices, candidates)
    asked = families_asked_for(families)
    source, first = source_of(batches, client, restarts=objective != "regression", progress=progress)

    drawn = Slices(slice_directions(first[0].shape[-1], pool, seed=seed))
    others = families_of(asked, first)
    reduced = split_statistics if auto else SufficientStatistics.of
    one_batch = partial(regression_statistics, (drawn, *others), n_iter, epsilon, reduced=reduced)
    statistics = source.total(one_batch)
    picked, statistics, slice_errors = choose_slices(
        statistics,
        pool,
        None if auto else n_slices,
        ridge=ridge,
        tolerance=tolerance,
        greedy=candidates is not None,
    )
    directions = drawn.directions[:, : picked.shape[-1]]
    if candidates is not None:  # each head has its own: (H, d, L)
        directions = np.take_along_axis(drawn.directions[None], picked[:, None, :], axis=-1)
    chosen = (Slices(directions), *others)
    weights = statistics.ridge(ridge)
    if objective != "regression":
        weights = descend(
            source, objective, chosen, n_iter, epsilon, weights, statistics, max(ridge, 1e-9), max_iter
        )
    amortizer = Amortizer(
        chosen,
        weights,
        epsilon=epsilon,
        n_iter=n_iter,
        objective=objective,
        refine=refine,
        r_squared=statistics.r_squared(weights),
        statistics=statistics,
        slice_errors=slice_errors,
    )
    return replace(amortizer, omega=fitted_omega(amortizer, *first)) if refine else amortizer


def source_of(batches, client, *, restarts, progress):
    """Make a source of the batches, here or on a cluster; also give the first batch, checked."""
    check_batches(batches, "fit_amortizer")
    if client is None:
        source = in_process(batches, restarts=restarts)
    else:
        source = on_cluster(batches, client, restarts=restarts, progress=progress)
    first = source.first()
    if first is None:
        raise ValueError("fit_amortizer: batches is empty; give at least one (q, k)")
    return source, with_masks(first)


def slices_to_draw(n_slices, candidates):
    """Whether the number of slices is to be found, and how many are drawn to choose from."""
    auto = isinstance(n_slices, str)
    if auto and n_slices != "auto":
        raise ValueError(f"fit_amortizer: n_slices must be an integer or 'auto', got {n_slices!r}")
    if not auto:
        check_count(n_slices, "n_slices", "fit_amortizer", least=1)
    if candidates is not None:
        check_count(candidates, "candidates", "fit_amortizer", least=COUNTS[0] if auto else n_slices)
    return auto, candidates or (COUNTS[-1] if auto else n_slices)


def families_asked_for(given):
    """Give each family beside the slices its setting, by name: what was given, or its default."""
    known = {name: family for name, family in FAMILIES.items() if family is not Slices}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(
            f"fit_amortizer: no setting {', '.join(unknown)}; the families of features are {', '.join(known)}"
        )
    return {name: given.get(name, family.default) for name, family in known.items()}


def families_of(settings, first):
    """Make the families from their settings, for a first batch (q, k, masks)."""
    d, principal = first[0].shape[-1], functools.cache(partial(principal_directions, *first))

    def axes(rank):
        # of full rank any basis spans the same features: then the axes, which do not depend on the data
        return np.eye(d) if rank >= d else principal()[..., :rank]

    return tuple(FAMILIES[name].fitted(setting, axes) for name, setting in settings.items() if setting)


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
