"""Clouds and their moved copies: each point of a cloud is to find itself again.

The copy is rotated, sheared, shifted, bent, shuffled, and every point is moved a little. The clouds are those of
clouds.py, so nothing is downloaded. With ``missing`` some points are in one of the two clouds alone.

Rotation, shear and shift can be undone for each cloud by itself, its bend cannot: near points are moved alike, but
where to is known from both clouds together. There a second marginal says what scores of single pairs do not.

Shapes: images (N, height, width) -> first (N, n, 2), second (N, m, 2), partners (N, n).
"""

from __future__ import annotations

import numpy as np

from asap_ref.lab.clouds import draw_clouds
from asap_ref.model.matching import Pairs

ANGLE, SHEAR, SHIFT, BEND, NOISE = 0.9, 0.25, 0.3, 0.2, 0.05  # radians at most; standard deviations
WAVES = 8  # of which a bend is the sum


def draw_pairs(images, n, rng, *, missing=0.0, bend=BEND):
    """Draw a cloud of n points from each image, and its moved copy: (Pairs, partners).

    Parameters
    ----------
    images : numpy.ndarray (N, height, width)
        Ink, as for `draw_clouds`.
    missing : float
        The share of the points that the second cloud lacks; half as many of the others are lacking in the first.
    bend : float
        Standard deviation of the smooth field along each axis; the copy is rigid but for its shear at zero.

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
    second = (first @ move.mT + shift + bend * draw_bends(first, rng) + noise).astype(np.float32)
    lost = round(missing * n)
    gone = round(missing * n / 2)
    # the first ``gone`` of the points are in the second alone, the last ``lost`` in the first alone
    order = np.argsort(rng.random((N, n - lost)), axis=-1)  # place in the second -> point
    place = np.argsort(order, axis=-1)  # point -> place in the second
    partners = np.concatenate([place, np.full((N, lost), -1)], axis=1)
    return Pairs(first[:, gone:], np.take_along_axis(second, order[..., None], axis=1)), partners[:, gone:]


def draw_bends(points, rng):
    """Draw how far each point of a cloud (N, n, 2) is moved by a smooth random field of its own, of unit variance.

    The field is a sum of waves of about unit frequency (radians), so near points are moved alike (a Gaussian process,
    Rahimi & Recht 2007).
    """
    N = len(points)
    frequency, phase = rng.standard_normal((N, 2, WAVES)), rng.uniform(0, 2 * np.pi, (N, 1, WAVES))
    height = rng.standard_normal((N, WAVES, 2)) * np.sqrt(2 / WAVES)
    return np.cos(points @ frequency + phase) @ height
