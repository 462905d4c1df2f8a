"""How many slices: the fewest whose held-out error is nearly the best.

A slice costs a sort in every forward pass, so none should be there that the dual does not need. Of nested candidates
(the first L of one list, be it the directions as they were drawn or those that `select` takes), two sums judge all:
statistics of the sequences to fit on, and of those held out. Each candidate is a sub-block of both.

Shapes: features (..., H, F, n), target (..., H, n).
"""

from __future__ import annotations

import numpy as np

from asap_ref.calibration.sources import Total
from asap_ref.method.regression import SufficientStatistics, select
from asap_ref.support.arrays import to_numpy

COUNTS = (4, 8, 16, 32, 64)  # the candidates
EVERY = 10  # every tenth sequence is held out
ROUNDING = 1e-4  # an error that more slices need not lower: features may come in float32


def split_statistics(features, target, mask):
    """Sums over the sequences of a batch to fit on, and over those held out: every tenth, or the last of fewer."""
    features, target = to_numpy(features), to_numpy(target)
    mask = np.broadcast_to(True if mask is None else to_numpy(mask), target.shape)
    if target.ndim == 2:  # (H, n) is one sequence
        features, target, mask = features[None], target[None], mask[None]
    count = len(target)
    held_out = (np.arange(count) % EVERY == min(count, EVERY) - 1) & (count > 1)
    sides = (~held_out, held_out)
    return Total(*(SufficientStatistics.of(features[side], target[side], mask=mask[side]) for side in sides))


def candidate_counts(pool):
    """Return the numbers of slices to choose among, of ``pool`` at most.

    Examples
    --------
    >>> candidate_counts(20), candidate_counts(3)
    ([4, 8, 16], [3])
    """
    return [L for L in COUNTS if pool >= L] or [pool]


def held_out_errors(fit, held_out, candidates, counts, *, ridge, chosen):
    """Relative error of the dual on held-out data for each number of slices L in ``counts``: NumPy (K,).

    One candidate is a prefix of the next, so two sums, those to fit on and those held out, judge all of them: each is
    a sub-block. The error is the root of the unexplained share of the dual, 1 - R², in the mean over heads.

    Parameters
    ----------
    fit, held_out : SufficientStatistics
        Of the same features, of which the first ``candidates`` are slices.
    candidates : int
    counts : sequence of int
        At most ``candidates`` each.
    ridge : float
    chosen : bool
        Whether L slices are those that `select` takes of all candidates, or the first L.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.standard_normal((2, 1, 4, 100))  # what is fitted, and what is held out
    >>> fit, held_out = (SufficientStatistics.of(x, x[:, 0] + x[:, 2]) for x in features)
    >>> held_out_errors(fit, held_out, 4, (1, 2, 3), ridge=1e-6, chosen=False).round(2)
    array([0.71, 0.71, 0.  ])
    """
    first = np.tile(np.arange(candidates), (len(fit.gram), 1))
    order = select(fit, candidates, max(counts)) if chosen else first  # (H, L)
    errors = []
    for L in counts:
        weights = fit.of_slices(order[:, :L], candidates).ridge(ridge)
        unexplained = 1 - held_out.of_slices(order[:, :L], candidates).r_squared(weights)
        errors.append(np.sqrt(np.maximum(np.mean(unexplained), 0)))  # rounding may leave less than nothing
    return np.asarray(errors)


def fewest(counts, errors, tolerance):
    """Return the smallest of the counts whose error is at most 1 + tolerance times the best, or no error at all.

    Examples
    --------
    >>> fewest([4, 8, 16], [0.3, 0.21, 0.2], 0.05)
    8
    """
    bar = max((1 + tolerance) * min(errors), ROUNDING)
    return next(L for L, error in zip(counts, errors, strict=True) if error <= bar)
