"""What public solvers say of a case: POT, SciPy, and the theorems that characterise a solution."""

from __future__ import annotations

import formulas
import mpmath
import numpy as np
import ot
from arithmetic import EXACT
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp, softmax


def certify(spec, outputs, agree):
    """Hold a case against the solvers that know its problem; return their names."""
    judge = JUDGES.get(spec.operator)
    return judge(spec, outputs, agree) if judge else []


def masked(spec):
    return any(name.endswith("mask") for name in spec.inputs)


def c_transform(spec, outputs, agree):
    if masked(spec):
        return []
    S, dual, eps = spec.inputs["scores"], spec.inputs["dual"], spec.arguments["epsilon"]
    onto_key = spec.arguments["onto"] == "key"
    exponents = (S + (dual[..., :, None] if onto_key else dual[..., None, :])) / eps
    expected = -eps * logsumexp(exponents, axis=-2 if onto_key else -1)
    if onto_key:
        expected = expected + eps * np.log(S.shape[-2] / S.shape[-1])
    agree(spec.id, outputs["out"], expected, 1e-13)
    return ["scipy.special.logsumexp"]


def sinkhorn(spec, outputs, agree):
    if "converged" not in spec.flags.split():
        return []
    S, eps = spec.inputs["scores"], spec.arguments["epsilon"]
    n, m = S.shape
    f, g = (np.asarray(x, dtype=np.float64) for x in outputs.values())
    plan = np.exp((f[:, None] + g[None, :] + S) / eps)
    expected = ot.sinkhorn(
        np.ones(n), np.full(m, n / m), -S, eps, method="sinkhorn_log", numItermax=5000, stopThr=1e-15
    )
    agree(f"{spec.id} plan", plan, expected, 1e-10)
    agree(f"{spec.id} columns", plan.sum(0), np.full(m, n / m), 1e-12)
    return ["ot.sinkhorn (POT)"]


def potentials(spec, outputs, agree):
    """Feasible, and without a gap to the exact optimum: which proves both optimal."""
    x, y = spec.inputs["x"], spec.inputs["y"]
    a, b = (
        np.broadcast_to(spec.inputs.get(name, np.ones(size)), z.shape) for name, size, z in
        (("x_weights", x.shape[-1], x), ("y_weights", y.shape[-1], y))
    )  # fmt: skip
    names = ["ot.emd2 (POT)"]
    for index in np.ndindex(x.shape[:-1]):
        i, j = (np.flatnonzero(np.broadcast_to(spec.inputs.get(mask, True), z.shape)[index])
                for mask, z in (("x_mask", x), ("y_mask", y)))  # fmt: skip
        n, m = len(i), len(j)
        if n == 0 or m == 0:
            continue
        X, Y = x[index][i][:, None], y[index][j][None, :]
        cost = -X * Y if spec.arguments["cost"] == "bilinear" else (X - Y) ** 2 / 2
        phi, psi = (np.asarray(outputs[name], dtype=np.float64)[index] for name in ("phi", "psi"))
        phi, psi = phi[i], psi[j]
        scale = np.abs(cost).max() + np.abs(phi).max() + 1e-300
        agree(
            f"{spec.id} feasibility", 1 + np.minimum(cost - phi[:, None] - psi[None, :], 0).min() / scale, 1, 1e-12
        )
        p, r = (w / w.sum() for w in (a[index][i], b[index][j]))
        dual = p @ phi + r @ psi
        optimum = ot.emd2(p, r, cost) if n * m > 1 else p @ cost @ r
        agree(f"{spec.id} duality gap", 1 + (dual - optimum) / scale, 1, 1e-10)
        if n == m and "x_weights" not in spec.inputs and "y_weights" not in spec.inputs:
            rows, columns = linear_sum_assignment(cost)
            agree(f"{spec.id} assignment", 1 + (dual - cost[rows, columns].mean()) / scale, 1, 1e-12)
            names = ["ot.emd2 (POT)", "scipy.optimize.linear_sum_assignment"]
    return names


def softmax_attention(spec, outputs, agree):
    if masked(spec):
        return []
    q, k, v = (spec.inputs[name] for name in "qkv")
    agree(spec.id, outputs["out"], softmax(q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]), axis=-1) @ v, 1e-12)
    return ["scipy.special.softmax"]


def directions(spec, outputs, agree):
    theta = np.asarray(outputs["directions"], dtype=np.float64)
    agree(f"{spec.id} lengths", np.linalg.norm(theta, axis=0), np.ones(theta.shape[1]), 1e-6)
    return [
        "the property itself: unit columns"
        + (", orthonormal blocks" if spec.arguments["kind"] == "orthogonal" else "")
    ]


def regression(spec, outputs, agree):
    """Ridge regression as least squares with one more row for each penalty; numpy.linalg.lstsq."""
    expected = least_squares(spec.inputs, spec.arguments)
    agree(f"{spec.id} weights", outputs["weights"], expected, 1e-9)
    return ["numpy.linalg.lstsq of the augmented system", "normal equations at 50 digits (mpmath)"]


def features_and_target(inputs, arguments):
    """For each head: features (F, tokens) and target (tokens,) by the second source, as mpmath numbers."""
    q, k, directions = (inputs[name] for name in ("q", "k", "directions"))
    as_exact = EXACT.asarray
    epsilon = mpmath.mpf(arguments["epsilon"])
    heads = []
    for h in range(q.shape[1]):
        phi, target = [], []
        for b in range(q.shape[0]):
            qq, kk = as_exact(q[b, h], None), as_exact(k[b, h], None)
            (features,) = formulas.dual_features(
                EXACT, qq, kk, as_exact(directions, None), cumulants=arguments["cumulants"]
            )
            (scores,) = formulas.attention_scores(EXACT, qq, kk)
            f, _ = formulas.sinkhorn(EXACT, scores, n_iter=arguments["n_iter"] - 1, epsilon=epsilon)
            phi.append(features)
            target.append(formulas.centred(EXACT, f))
        heads.append((np.concatenate(phi, axis=-1), np.concatenate(target)))
    return heads


def ridge_at_fifty_digits(inputs, arguments):
    """Weights (H, F) and R² (H,): the normal equations solved by mpmath."""
    weights, shares = [], []
    for phi, f in features_and_target(inputs, arguments):
        gram, cross = phi @ phi.T, phi @ f
        penalised = gram + mpmath.mpf(arguments["ridge"]) * np.diag(np.diag(gram))
        w = mpmath.lu_solve(mpmath.matrix(penalised.tolist()), mpmath.matrix(cross.tolist()))
        w = np.asarray(list(w), dtype=object)
        residual = f - w @ phi
        weights.append([float(t) for t in w])
        shares.append(float(1 - (residual @ residual) / (f @ f)))
    return np.asarray(weights), np.asarray(shares)


def least_squares(inputs, arguments):
    found = []
    for phi, f in features_and_target(inputs, arguments):
        phi, f = phi.astype(np.float64), f.astype(np.float64)
        penalty = np.diag(np.sqrt(arguments["ridge"]) * np.linalg.norm(phi, axis=1))
        found.append(np.linalg.lstsq(np.vstack([phi.T, penalty]), np.append(f, np.zeros(len(phi))), rcond=None)[0])
    return np.asarray(found)


JUDGES = {
    "entropic_c_transform": c_transform,
    "sinkhorn": sinkhorn,
    "kantorovich_potentials_1d": potentials,
    "softmax_attention": softmax_attention,
    "slice_directions": directions,
    "fit_amortizer": regression,
}
