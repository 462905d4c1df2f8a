"""Calibration beyond regression: L-BFGS on a loss of the predicted dual, from the regression's weights on."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.optimize import minimize

from asap_ref.calibration.batch import objective_of_batch


def descend(source, objective, families, n_iter, epsilon, weights, statistics, pull, max_iter):
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
        loss, d_w, count = source.total(partial(objective_of_batch, families, objective, n_iter, epsilon, w))
        d_z = (whiten.mT @ d_w[..., None])[..., 0] / count + pull * z
        return loss / count + pull * np.sum(z * z) / 2, d_z.ravel()

    start = np.linalg.solve(whiten, weights[..., None])[..., 0].ravel()
    found = minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": max_iter, "gtol": 1e-9})
    return (whiten @ found.x.reshape(weights.shape)[..., None])[..., 0]
