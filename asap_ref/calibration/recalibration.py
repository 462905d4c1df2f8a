"""Recalibration: new data is merged with what an amortizer was fitted from, instead of starting over.

The sufficient statistics of ridge regression add up (support/sums.py), and an amortizer keeps its own, so
calibrating on one half and then on the other gives what the whole gives.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from asap_ref.calibration.amortizer import Amortizer
from asap_ref.calibration.batch import check_batches, statistics_of_batch
from asap_ref.calibration.penalty import penalties
from asap_ref.calibration.sources import in_process
from asap_ref.support.settings import check_positive


def recalibrate(amortizer, batches, *, ridge=None, forget=1.0):
    """Fit the weights of an amortizer again, on its earlier calibration data and new data together.

    Parameters
    ----------
    amortizer : Amortizer
        As from `fit_amortizer`, of either objective. Its families of features stay as they are.
    batches
        New data, as in `fit_amortizer`; gone through once.
    ridge : float, optional
        As in `fit_amortizer`.
    forget : float
        Weight of the earlier data, from 0 (the new data alone) to 1.

    Returns
    -------
    Amortizer
        With the merged statistics, so that more can follow.

    Raises
    ------
    TypeError
        If amortizer is none, or ridge or forget no number.
    ValueError
        If the amortizer keeps no statistics (one of release 0.1 that regression did not fit has none), or batches is
        empty.

    Notes
    -----
    One Sinkhorn run a batch of the new data. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import fit_amortizer
    >>> q, k = np.random.default_rng(0).standard_normal((2, 64, 1, 6, 4))
    >>> first = fit_amortizer([(q[:32], k[:32])], n_slices=4, n_iter=5)
    >>> whole = fit_amortizer([(q, k)], n_slices=4, n_iter=5)
    >>> bool(np.allclose(recalibrate(first, [(q[32:], k[32:])]).weights, whole.weights))
    True
    """
    if not isinstance(amortizer, Amortizer):
        raise TypeError(
            f"recalibrate: amortizer must be an Amortizer, as from fit_amortizer, got {type(amortizer).__name__}"
        )
    check_batches(batches, "recalibrate")
    if ridge is not None:
        ridge = check_positive(ridge, "ridge", "recalibrate", or_zero=True)
    forget = check_positive(forget, "forget", "recalibrate", or_zero=True)
    if amortizer.statistics is None:
        raise ValueError("recalibrate: the amortizer keeps no statistics of its calibration; fit it anew")
    if forget > 1:
        raise ValueError(f"recalibrate: forget must be from 0 to 1, got {forget}")
    settings = (amortizer.objective, amortizer.families, amortizer.n_iter, amortizer.epsilon)
    new = in_process(batches).total(partial(statistics_of_batch, *settings))
    if new is None or new.count == 0:
        raise ValueError("recalibrate: batches is empty; give at least one (q, k)")
    merged = new if forget == 0 else amortizer.statistics.scaled(forget) + new
    weights = merged.ridge(penalties(amortizer.families, merged.count) if ridge is None else ridge)
    return replace(amortizer, weights=weights, r_squared=merged.r_squared(weights), statistics=merged)
