"""Calibration: the weights of the amortizer, from queries and keys and a Sinkhorn teacher.

Two objectives, on the same features, each a linear system that is solved once (method/regression.py, kl.py):

    regression   ridge regression to the closure-ready dual f^(T-1), whose two-sided c-transform is exactly the plan of
                 a teacher of T iterations (paper)
    kl           KL(P_teacher || P_hat) (paper), to second order around the teacher (derived)

All that the data are needed for is a sum over batches (sources.py) of what one batch gives (batch.py), so batches
stream in bounded memory, here or on the workers of a cluster (cluster.py).

Shapes: q (..., H, n, d), k (..., H, m, d), weights (H, F).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial

import numpy as np

from asap_ref.calibration.amortizer import Amortizer
from asap_ref.calibration.batch import OBJECTIVES, check_batches, statistics_of_batch, with_masks
from asap_ref.calibration.cluster import on_cluster
from asap_ref.calibration.omega import fitted_omega
from asap_ref.calibration.penalty import penalties
from asap_ref.calibration.slice_choice import select
from asap_ref.calibration.sources import in_process
from asap_ref.fast.threads import blas_on_one_thread
from asap_ref.method.features import Slices
from asap_ref.method.slices import slice_directions
from asap_ref.support.arrays import to_numpy
from asap_ref.support.family import FAMILIES
from asap_ref.support.masks import keep_tokens
from asap_ref.support.settings import (
    check_choice,
    check_count,
    check_epsilon,
    check_flag,
    check_positive,
    check_seed,
)


def fit_amortizer(
    batches,
    *,
    n_slices=32,
    n_iter=20,
    epsilon=1.0,
    objective="regression",
    candidates=None,
    ridge=None,
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
        differ from batch to batch. Only valid tokens count. They are read once, one in memory. Data that are not in
        memory are read batch by batch: give paths of .npz files with arrays q, k (query_mask, key_mask), a zarr group
        of those arrays or its path, or a tuple of zarr or dask arrays; see `asap_ref.calibration.sources.resolved`.
    n_slices : int
        L, the number of slices, orthogonal as in `slice_directions`.
    n_iter : int
        T, the teacher's iterations; at least 1. The target is its closure-ready dual f^(T-1).
    epsilon : float
        Regularisation of the teacher.
    objective : {"regression", "kl"}
        See the top of the module. kl takes about half as long again. It is nearer where sequences are more than
        about thirty and the two-sided transform follows the prediction at once, which is why `compile_model` takes it
        there; with fewer, and before refining iterations, regression is (figures/choices/few_sequences.md).
    candidates : int, optional
        Draw that many slices and keep for each head the n_slices that explain most of its dual (derived): a better
        map at the same inference cost.
    ridge : float, optional
        Penalty, relative to each feature's second moment (ours); when not given, 1e-3 and the more, the fewer tokens
        there are for the features of a family, as penalty.py derives it.
    refine : int
        Over-relaxed Sinkhorn iterations between the prediction and the two-sided transform, kept with the amortizer.
        How far they go, a number a head, is found on the first batch (omega.py).
    seed : int
        Of the slices.
    client : dask.distributed.Client, optional
        Go through the batches on the workers of this cluster, which hold a batch for each of their threads; the
        solve stays here. The result is the same up to rounding. Needs ``asap-ref[distributed]``.
    progress : bool
        Whether to show Dask's progress bar.
    **families
        Which families of features to use beside the slices, each by name (derived): ``cumulants=True``, the default;
        ``quadratic=r`` and ``moments=r``, on the r leading eigenvectors of the pooled covariance of the first batch's
        queries and keys, head by head (the axes, if r is at least d). These are many features, so they want many
        calibration tokens; at inference they cost next to nothing. A family of your own is known by its name as well,
        see `asap_ref.Family`.

    Returns
    -------
    Amortizer

    Raises
    ------
    TypeError, ValueError
        On wrong settings, empty batches, or batches that disagree in heads or dimension.

    Notes
    -----
    A feature that is nothing but rounding on a batch, as ``|q|²`` is where queries are normalised, is left out of its
    sums (rounding.py).

    One Sinkhorn run a batch, O(T n m), in scaling form, and O(n F²) for the sums: together about two forward passes of
    the teacher. The statistics are O(H F²) and the solve O(H F³).

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
    refine = check_count(refine, "refine", "fit_amortizer", least=0)
    seed = check_seed(seed, "fit_amortizer")
    progress = check_flag(progress, "progress", "fit_amortizer")
    check_choice(objective, "objective", "fit_amortizer", tuple(OBJECTIVES))
    if ridge is not None:
        ridge = check_positive(ridge, "ridge", "fit_amortizer", or_zero=True)
    n_slices = check_count(n_slices, "n_slices", "fit_amortizer", least=1)
    if candidates is not None:
        candidates = check_count(candidates, "candidates", "fit_amortizer", least=n_slices)
    asked = families_asked_for(families)
    source, first = source_of(batches, client, progress=progress)

    drawn = Slices(slice_directions(first[0].shape[-1], candidates or n_slices, seed=seed))
    with blas_on_one_thread():
        others = families_of(asked, first)
    statistics = source.total(partial(statistics_of_batch, objective, (drawn, *others), n_iter, epsilon))
    if statistics.count == 0:
        raise ValueError("fit_amortizer: batches hold no valid token")
    slices = Slices(drawn.directions[..., :n_slices])
    with blas_on_one_thread():
        if ridge is None:
            ridge = penalties((slices, *others), statistics.count)
        if candidates is not None:  # each head has its own: (H, d, L)
            picked = select(statistics, candidates, n_slices, ridge)
            slices = Slices(np.take_along_axis(drawn.directions[None], picked[:, None, :], axis=-1))
            statistics = statistics.of_slices(picked, candidates)
        weights = statistics.ridge(ridge)
    amortizer = Amortizer(
        (slices, *others),
        weights,
        epsilon=epsilon,
        n_iter=n_iter,
        objective=objective,
        refine=refine,
        r_squared=statistics.r_squared(weights),
        statistics=statistics,
    )
    return replace(amortizer, omega=fitted_omega(amortizer, *first)) if refine else amortizer


def source_of(batches, client, *, progress):
    """Make a source of the batches, here or on a cluster; also give the first batch, checked."""
    check_batches(batches, "fit_amortizer")
    source = in_process(batches) if client is None else on_cluster(batches, client, progress=progress)
    first = source.first()
    if first is None:
        raise ValueError("fit_amortizer: batches is empty; give at least one (q, k)")
    return source, with_masks(first)


def families_asked_for(given):
    """Give each family beside the slices its setting, by name: what was given, or its default."""
    known = {name: family for name, family in FAMILIES.items() if family is not Slices}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(
            f"fit_amortizer: no setting {', '.join(unknown)}; the families of features are {', '.join(known)}"
        )
    for name, setting in given.items():
        if np.ndim(setting) and not isinstance(setting, tuple):  # an array has no truth value
            raise TypeError(f"fit_amortizer: {name} must be one setting, or a tuple of them, got {setting!r:.60}")
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
