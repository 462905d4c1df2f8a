"""Problems with known structure: random, sharp, tied and masked, and those whose answer has a closed form."""

import numpy as np


def scores(*shape, size=3.0, seed=0):
    """Random scores of a given standard deviation."""
    return size * np.random.default_rng(seed).standard_normal(shape)


def masks(batch, n, m, seed=0):
    """Query and key masks, (batch, n) and (batch, m), each sequence with at least one valid token."""
    rng = np.random.default_rng(seed)
    query_mask, key_mask = rng.random((batch, n)) < 0.7, rng.random((batch, m)) < 0.7
    query_mask[:, 0] = key_mask[:, 1] = True
    return query_mask, key_mask


def qkv(*leading, n=6, m=None, d=4, p=None, size=1.0, seed=0, dtype=np.float64):
    """Random queries, keys and values."""
    rng = np.random.default_rng(seed)
    shapes = (n, d), (m or n, d), (m or n, p or d)
    return tuple((size * rng.standard_normal((*leading, *shape))).astype(dtype) for shape in shapes)


def permutation_scores(n, gap=1.0, seed=0):
    """Scores whose best assignment is a known permutation, better than any other by at least ``gap``."""
    order = np.random.default_rng(seed).permutation(n)
    S = -gap * np.ones((n, n))
    S[np.arange(n), order] = 0
    return S, order


def gaussian_dual(x, y, epsilon):
    """Closed-form entropic map between centred Gaussians on the line: slope of the barycentric projection.

    For variances a, b and cost -x y at regularisation epsilon the plan is Gaussian with covariance c, where
    c² + epsilon c = a b (Janati et al. 2020, in one dimension).
    """
    a, b = np.var(x), np.var(y)
    c = -epsilon / 2 + np.sqrt(epsilon**2 / 4 + a * b)
    return c / a
