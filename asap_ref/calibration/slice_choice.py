"""Which slices: those that explain most of the dual of a head, out of all that were drawn.

A slice costs a sort in every forward pass, so none should be there that the dual does not need.
"""

from __future__ import annotations

import numpy as np


def select(statistics, candidates, n_slices, penalty=0.0):
    """Choose slices greedily, head by head: (H, n_slices) indices into the first ``candidates`` features.

    The features behind the candidates (cumulants, quadratic) are there whatever is chosen. Each step takes the slice
    that lowers the residual of the regression most, and sweeps it out of the others: orthogonal matching pursuit, on
    the sums alone (Pati et al. 1993). With few tokens many features explain everything, whatever the slices: hence the
    penalty of the ridge regression to come, a number or one for each of its n_slices and other features. O(H L F²).

    Examples
    --------
    >>> from asap_ref import SufficientStatistics
    >>> rng = np.random.default_rng(0)
    >>> features = rng.standard_normal((1, 4, 100))
    >>> select(SufficientStatistics.of(features, 3 * features[:, 2] + features[:, 0]), 4, 2)
    array([[2, 0]])
    """
    chosen, others = [], statistics.gram.shape[-1] - candidates
    penalty = np.broadcast_to(penalty, n_slices + others)
    penalty = np.concatenate([np.full(candidates, penalty[0]), penalty[n_slices:]])
    for gram, cross in zip(statistics.gram, statistics.cross, strict=True):
        size = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(float).tiny))
        correlation = gram / size / size[:, None] + np.diag(penalty)
        joint = np.block([[correlation, (cross / size)[:, None]], [cross / size, 0.0]])
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
