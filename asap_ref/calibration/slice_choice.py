"""Which slices, and how many: those that explain most, and the fewest whose held-out error is nearly the best.

A slice costs a sort in every forward pass, so none should be there that the dual does not need. Of nested candidates
(the first L of one list, be it the directions as they were drawn or those that `select` takes), two sums judge all:
statistics of the sequences to fit on, and of those held out. Each candidate is a sub-block of both.

Shapes: features (..., H, F, n), target (..., H, n).
"""

from __future__ import annotations

import numpy as np

from asap_ref.method.regression import SufficientStatistics

COUNTS = (4, 8, 16, 32, 64)  # the candidates
ROUNDING = 1e-4  # an error that more slices need not lower: features may come in float32


def choose_slices(statistics, pool, n_slices, *, ridge, tolerance, greedy):
    """Choose among the ``pool`` slices that were drawn: (picked (H, L), statistics of these, errors of "auto").

    Parameters
    ----------
    statistics : SufficientStatistics, or Total of two of sequences to fit on and of those held out
        Of features of which the first ``pool`` are slices.
    n_slices : int or None
        L; None finds it, from the statistics to fit on and those held out.
    greedy : bool
        Whether each head takes those that `select` finds, or the first ones.
    """
    errors = None
    if n_slices is None:
        fit, judge = statistics
        statistics = fit + judge
        if statistics.count > 0 == min(fit.count, judge.count):
            raise ValueError(
                "fit_amortizer: n_slices='auto' holds out a tenth of the sequences of each batch, and these leave none "
                "to fit on or to judge by; give batches of several sequences, or a number of slices"
            )
    if statistics.count == 0:
        raise ValueError("fit_amortizer: batches hold no valid token")
    if n_slices is None:
        counts = candidate_counts(pool)
        errors = held_out_errors(fit, judge, pool, counts, ridge=ridge, chosen=greedy)
        n_slices = fewest(counts, errors, tolerance)
        errors = np.stack([counts, errors], axis=-1)
    picked = np.tile(np.arange(n_slices), (len(statistics.gram), 1))
    if greedy:
        picked = select(statistics, pool, n_slices)
    return picked, statistics.of_slices(picked, pool), errors


def candidate_counts(pool):
    """Return the numbers of slices to choose among, of ``pool`` at most.

    Examples
    --------
    >>> candidate_counts(20), candidate_counts(3)
    ([4, 8, 16], [3])
    """
    return [L for L in COUNTS if pool >= L] or [pool]


def held_out_errors(fit, judge, candidates, counts, *, ridge, chosen):
    """Relative error of the dual on held-out data for each number of slices L in ``counts``: NumPy (K,).

    One candidate is a prefix of the next, so two sums, those to fit on and those held out, judge all of them: each is
    a sub-block. The error is the root of the unexplained share of the dual, 1 - R², in the mean over heads.

    Parameters
    ----------
    fit, judge : SufficientStatistics
        To fit on, and held out; of the same features, of which the first ``candidates`` are slices.
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
    >>> fit, judge = (SufficientStatistics.of(x, x[:, 0] + x[:, 2]) for x in features)
    >>> held_out_errors(fit, judge, 4, (1, 2, 3), ridge=1e-6, chosen=False).round(2)
    array([0.71, 0.71, 0.  ])
    """
    first = np.tile(np.arange(candidates), (len(fit.gram), 1))
    order = select(fit, candidates, max(counts)) if chosen else first  # (H, L)
    errors = []
    for L in counts:
        weights = fit.of_slices(order[:, :L], candidates).ridge(ridge)
        unexplained = 1 - judge.of_slices(order[:, :L], candidates).r_squared(weights)
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


def select(statistics, candidates, n_slices):
    """Choose slices greedily, head by head: (H, n_slices) indices into the first ``candidates`` features.

    The features behind the candidates (cumulants, quadratic) are there whatever is chosen. Each step takes the slice
    that lowers the residual of the regression most, and sweeps it out of the others: orthogonal matching pursuit, on
    the sums alone (Pati et al. 1993). O(H L F²).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.standard_normal((1, 4, 100))
    >>> select(SufficientStatistics.of(features, 3 * features[:, 2] + features[:, 0]), 4, 2)
    array([[2, 0]])
    """
    chosen = []
    for gram, cross in zip(statistics.gram, statistics.cross, strict=True):
        size = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(float).tiny))
        joint = np.block([[gram / size / size[:, None], (cross / size)[:, None]], [cross / size, 0.0]])
        for always in range(candidates, len(gram)):
            _sweep(joint, always)
        left = list(range(candidates))
        picks = []
        for _ in range(n_slices):
            spread = np.diagonal(joint)[left]
            gain = np.where(spread > 1e-9, joint[left, -1] ** 2 / np.maximum(spread, 1e-9), -1.0)
            picks.append(left.pop(int(np.argmax(gain))))
            _sweep(joint, picks[-1])
        chosen.append(picks)
    return np.asarray(chosen)


def _sweep(joint, i):
    """Take what feature i explains out of all others; nothing if it is explained already."""
    if joint[i, i] > 1e-9:
        joint -= np.outer(joint[:, i], joint[i]) / joint[i, i]
