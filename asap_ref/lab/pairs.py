"""Clouds and their moved copies: each point of a cloud is to find itself again.

The copy is rotated, sheared, shifted, shuffled, and every point is moved a little. The clouds are those of clouds.py,
so nothing is downloaded. With ``missing`` some points are in one of the two clouds alone.

Shapes: images (N, height, width) -> first (N, n, 2), second (N, m, 2), partners (N, n).
"""

from __future__ import annotations

import numpy as np

from asap_ref.lab.clouds import draw_clouds
from asap_ref.model.matching import Pairs

ANGLE, SHEAR, SHIFT, NOISE = 0.9, 0.25, 0.3, 0.05  # radians at most; standard deviations


def draw_pairs(images, n, rng, *, missing=0.0):
    """Draw a cloud of n points from each image, and its moved copy: (Pairs, partners).

    Parameters
    ----------
    images : numpy.ndarray (N, height, width)
        Ink, as for `draw_clouds`.
    missing : float
        The share of the points that the second cloud lacks; half as many of the others are lacking in the first.

    Returns
    -------
    (Pairs, numpy.ndarray (N, n'))
        Clouds float32; for each point of the first its place in the second, -1 where it is not there.

    Examples
    --------
    >>> pairs, partners = draw_pairs(np.ones((4, 8, 8)), 12, np.random.default_rng(0), missing=1 / 3)
    >>> pairs.first.shape, pairs.second.shape, np.sum(partners >= 0, axis=1)
    ((4, 10, 2), (4, 8, 2), array([6, 6, 6, 6]))
    """
    first = draw_clouds(images, n, rng)
    N = len(images)
    angle = rng.uniform(-ANGLE, ANGLE, N)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(N, 2, 2)
    move = turn @ (np.eye(2) + SHEAR * rng.standard_normal((N, 2, 2)))
    shift, noise = SHIFT * rng.standard_normal((N, 1, 2)), NOISE * rng.standard_normal((N, n, 2))
    second = (first @ move.mT + shift + noise).astype(np.float32)
    lost = round(missing * n)
    gone = round(missing * n / 2)
    # the first ``gone`` of the points are in the second alone, the last ``lost`` in the first alone
    order = np.argsort(rng.random((N, n - lost)), axis=-1)  # place in the second -> point
    place = np.argsort(order, axis=-1)  # point -> place in the second
    partners = np.concatenate([place, np.full((N, lost), -1)], axis=1)
    return Pairs(first[:, gone:], np.take_along_axis(second, order[..., None], axis=1)), partners[:, gone:]
