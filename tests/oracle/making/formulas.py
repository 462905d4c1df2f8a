"""The operators a second time, from the formulas alone: the truth that the oracle's values are held against.

Nothing here comes from the package. Each formula is written for *one* problem without masks, in a way that is not
the package's: Sinkhorn balances the matrix itself instead of iterating duals; the potentials are sums over pairs
with levels compared as fractions, and psi is the c-transform of phi; plans are normalised matrices. Formulas take
the array module ``xp`` of arithmetic.py in which they run.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
from arithmetic import EXACT


def log_sum_exp(xp, x, axis):
    top = xp.fixed(xp.max(x, axis=axis, keepdims=True))
    total = xp.log(xp.sum(xp.exp(x - top), axis=axis))
    return total + top.squeeze(axis)


def attention_scores(xp, q, k):
    scale = xp.power(q.shape[-1], 0.5)
    return (xp.sum(q[:, None, :] * k[None, :, :], axis=-1) / scale,)


def log_mass(xp, scores):
    n, m = scores.shape
    return mpmath.log(mpmath.mpf(n) / m) if xp is EXACT else float(np.log(n / m))


def entropic_c_transform(xp, scores, dual, *, onto, epsilon):
    if onto == "query":
        return (-epsilon * log_sum_exp(xp, scores / epsilon + dual[None, :] / epsilon, -1),)
    totals = log_sum_exp(xp, scores / epsilon + dual[:, None] / epsilon, -2)
    return (epsilon * log_mass(xp, scores) - epsilon * totals,)


def two_sided_c_transform(xp, scores, query_dual, *, epsilon):
    log_plan = (scores + query_dual[:, None]) / epsilon
    columns = log_mass(xp, scores) - log_sum_exp(xp, log_plan, -2)
    rows = -log_sum_exp(xp, log_plan + columns[None, :], -1)
    return query_dual + epsilon * rows, epsilon * columns


def lse(xp, q, k, query_dual, *, epsilon):
    (scores,) = attention_scores(xp, q, k)
    return (-epsilon * log_sum_exp(xp, (scores + query_dual[:, None]) / epsilon, -2),)


def attend(xp, q, k, v, key_dual, *, epsilon):
    (scores,) = attention_scores(xp, q, k)
    log_plan, _, _ = balanced(xp, (scores + key_dual[None, :]) / epsilon, 0)
    return (xp.exp(log_plan) @ v,)


def transport_plan(xp, scores, query_dual, key_dual, *, epsilon):
    # rows first: a plan is a product of three kernels, but its factors overflow on their own
    return (xp.exp((scores + query_dual[:, None] + key_dual[None, :]) / epsilon),)


def balanced(xp, log_plan, n_iter):
    """Normalise rows, then columns and rows n_iter times: log plan, and what was added to rows and columns."""
    mass = log_mass(xp, log_plan)
    first = -log_sum_exp(xp, log_plan, -1)
    log_plan = log_plan + first[:, None]
    rows, columns = [first], []
    for _ in range(n_iter):
        columns.append(mass - log_sum_exp(xp, log_plan, -2))
        log_plan = log_plan + columns[-1][None, :]
        rows.append(-log_sum_exp(xp, log_plan, -1))
        log_plan = log_plan + rows[-1][:, None]
    return log_plan, rows, columns


def sinkhorn(xp, scores, init=None, *, n_iter, epsilon):
    if init is not None:  # the start replaces the first normalisation of rows
        log_plan, f, g = (scores + init[:, None]) / epsilon, init, 0 * scores[0, :]
        for _ in range(n_iter):
            df, dg = two_sided_c_transform(xp, epsilon * log_plan, 0 * f, epsilon=epsilon)
            f, g = f + df, g + dg
            log_plan = log_plan + df[:, None] / epsilon + dg[None, :] / epsilon
        return f, g
    _, rows, columns = balanced(xp, scores / epsilon, n_iter)
    g = epsilon * sum(columns) if columns else 0 * scores[0, :]
    return epsilon * sum(rows), g


def kl_loss(xp, scores, query_dual, teacher_columns, *, epsilon):
    # any teacher with these columns and rows that sum to one will do: here all its rows are equal
    n = scores.shape[0]
    log_plan = (scores + query_dual[:, None]) / epsilon
    log_plan = log_plan + (log_mass(xp, scores) - log_sum_exp(xp, log_plan, -2))[None, :]
    log_plan = log_plan - log_sum_exp(xp, log_plan, -1)[:, None]
    terms = teacher_columns[None, :] / n * (log_plan - scores / epsilon)
    return (-xp.sum(xp.sum(terms, axis=-1), axis=-1) / n,)


def dual_loss(xp, scores, query_dual, *, epsilon):
    n, m = scores.shape
    totals = log_sum_exp(xp, (scores + query_dual[:, None]) / epsilon, -2)
    g = epsilon * (log_mass(xp, scores) - totals)
    return (-xp.sum(query_dual, axis=-1) / n - xp.sum(g, axis=-1) / m,)


def marginal_error(xp, plan):
    n, m = plan.shape
    rows = xp.abs(xp.sum(plan, axis=1) - 1)
    columns = xp.abs(xp.sum(plan, axis=0) - xp.power(m, -1) * n)
    return xp.max(rows, axis=0), xp.max(columns, axis=0)


def kantorovich_potentials_1d(xp, x, y, x_weights=None, y_weights=None, *, cost):
    n, m = len(x), len(y)
    a, b = shares(x_weights, n), shares(y_weights, m)
    x_order, y_order = ascending(x), ascending(y)
    upto_y = [sum(b[i] for i in y_order[: j + 1]) for j in range(m)]
    slopes, runs = [], []
    for r in range(n - 1):
        level = sum(a[i] for i in x_order[: r + 1])
        left = min(sum(level_y < level for level_y in upto_y), m - 1)
        right = min(sum(level_y <= level for level_y in upto_y), m - 1)
        slopes.append((y[y_order[left]] + y[y_order[right]]) / 2)
        runs.append(x[x_order[r + 1]] - x[x_order[r]])
    phi = []
    for i in range(n):
        terms = [s * t for s, t in list(zip(slopes, runs, strict=True))[: x_order.index(i)]]
        phi.append(-sum(terms) if terms else 0 * x[0])
    if cost == "sqeuclidean":
        phi = [p + t * t / 2 for p, t in zip(phi, x, strict=True)]
    mean = sum(weight(xp, w) * p for w, p in zip(a, phi, strict=True))
    phi = [p - mean for p in phi]
    psi = []
    for j in range(m):
        slack = [(-t * y[j] if cost == "bilinear" else (t - y[j]) * (t - y[j]) / 2) - p for t, p in zip(x, phi)]
        psi.append(min(slack, key=number))
    return xp.stack(phi), xp.stack(psi)


def ascending(x):
    return sorted(range(len(x)), key=lambda i: Fraction(number(x[i])))


def number(x):
    """A plain float, to compare by."""
    return float(x.detach() if hasattr(x, "detach") else x)


def shares(weights, n):
    weights = [Fraction(1)] * n if weights is None else [Fraction(float(w)) for w in weights]
    return [w / sum(weights) for w in weights]


def weight(xp, share):
    return mpmath.mpf(share.numerator) / share.denominator if xp is EXACT else float(share)


def sliced_potentials(xp, q, k, directions):
    d, n_slices = directions.shape
    scale = xp.power(d, -0.25)
    phis, psis = [], []
    for a in range(n_slices):
        theta = directions[:, a]
        x, y = xp.sum(q * theta, axis=-1) * scale, xp.sum(k * theta, axis=-1) * scale
        phi, psi = kantorovich_potentials_1d(xp, x, y, cost="bilinear")
        phis.append(centred(xp, phi))
        psis.append(centred(xp, psi))
    return xp.stack(phis), xp.stack(psis)


def centred(xp, x):
    mean = xp.sum(x, axis=-1) / x.shape[-1]
    return x - (mean[..., None] if x.ndim > 1 else mean)


def cumulant_features(xp, q, k):
    u = q / xp.power(q.shape[-1], 0.5)
    along = xp.sum(u[:, None, :] * k[None, :, :], axis=-1)  # scores: their mean and variance over the keys
    mean = xp.sum(along, axis=-1) / len(k)
    spread = along - mean[:, None]
    rows = [mean, xp.sum(u * u, axis=-1), xp.sum(spread * spread, axis=-1) / len(k)]
    return (xp.stack([centred(xp, row) for row in rows]),)


def on_basis(xp, x, basis):
    """The coordinates of tokens, a list of r arrays of one number a token."""
    return [xp.power(x.shape[-1], -0.25) * xp.sum(x * basis[:, a], axis=-1) for a in range(basis.shape[-1])]


def quadratic_features(xp, q, k, basis):
    u, w = on_basis(xp, q, basis), [xp.sum(w, axis=0) / len(k) for w in on_basis(xp, k, basis)]
    rank = range(len(u))
    squares = [u[a] * u[b] for a in rank for b in rank if a <= b]
    rows = [*u, *squares, *(u[a] * w[b] for b in rank for a in rank)]
    return (xp.stack([centred(xp, row) for row in rows]),)


def moment_features(xp, q, k, basis):
    u, w = on_basis(xp, q, basis), on_basis(xp, k, basis)
    rank = range(len(u))

    def covariance(x, a, b):  # half the mean product of differences, over all pairs of tokens
        gaps = [x[c][:, None] - x[c][None, :] for c in (a, b)]
        return xp.sum(xp.sum(gaps[0] * gaps[1], axis=-1), axis=-1) / (2 * len(x[a]) ** 2)

    entries = [xp.sum(u[b], axis=-1) / len(q) for b in rank]
    entries += [covariance(x, b, b) for x in (w, u) for b in rank]
    rows = [u[a] * s for s in entries for a in rank]
    rows += [u[a] * u[b] * covariance(x, a, b) for x in (w, u) for a in rank for b in rank if a <= b]
    return (xp.stack([centred(xp, row) for row in rows]),)


def dual_features(xp, q, k, directions, basis=None, *, cumulants):
    phi, _ = sliced_potentials(xp, q, k, directions)
    rows = [*phi]
    rows += [*cumulant_features(xp, q, k)[0]] if cumulants else []
    rows += [*quadratic_features(xp, q, k, basis)[0]] if basis is not None else []
    return (xp.stack(rows),)


def amortized_query_dual(xp, q, k, directions, weights, basis=None, *, cumulants):
    (features,) = dual_features(xp, q, k, directions, basis, cumulants=cumulants)
    return (sum(weights[a] * features[a] for a in range(len(weights))),)


def softmax_attention(xp, q, k, v):
    (scores,) = attention_scores(xp, q, k)
    log_plan, _, _ = balanced(xp, scores, 0)
    return (xp.exp(log_plan) @ v,)


def sinkhorn_attention(xp, q, k, v, *, n_iter, epsilon):
    (scores,) = attention_scores(xp, q, k)
    log_plan, _, _ = balanced(xp, scores / epsilon, n_iter)
    return (xp.exp(log_plan) @ v,)


def asap_attention(xp, q, k, v, directions, weights, basis=None, *, cumulants, epsilon, refine):
    (dual,) = amortized_query_dual(xp, q, k, directions, weights, basis, cumulants=cumulants)
    (scores,) = attention_scores(xp, q, k)
    log_plan = (scores + dual[:, None]) / epsilon
    kernel = xp.exp(log_plan - xp.fixed(xp.max(log_plan, axis=0, keepdims=True)))
    for _ in range(1 + refine):  # a common factor of all columns is of no account: rows come last
        kernel = kernel / xp.sum(kernel, axis=0)[None, :]
        kernel = kernel / xp.sum(kernel, axis=1)[:, None]
    return (kernel @ v,)


def sliced_attention(xp, q, k, v, directions=None, *, temperature, inverse_temperature, hard):
    n, m, root = len(q), len(k), xp.power(q.shape[-1], 0.5)
    q, k = q / root, k / root
    if directions is None:
        x, y = [q[:, a] for a in range(q.shape[-1])], [k[:, a] for a in range(k.shape[-1])]
    else:
        x, y = ([xp.sum(z * directions[:, a], axis=-1) for a in range(directions.shape[-1])] for z in (q, k))
    # rank r holds the levels from r/n to (r + 1)/n: what it shares with rank s of the other side
    share = [
        [max(Fraction(0), min(Fraction(r + 1, n), Fraction(s + 1, m)) - max(Fraction(r, n), Fraction(s, m))) * n
         for s in range(m)] for r in range(n)
    ]  # fmt: skip
    gap = q[:, None, :] - k[None, :, :]
    distance = xp.sqrt(xp.sum(gap * gap, axis=-1))
    plans, costs = [], []
    for of_queries, of_keys in zip(x, y, strict=True):
        A, B = (soft_order(xp, z, temperature, hard) for z in (of_queries, of_keys))
        plan = sum(
            weight(xp, share[r][s]) * A[r][:, None] * B[s][None, :]
            for r in range(n)
            for s in range(m)
            if share[r][s]
        )
        plans.append(plan)
        costs.append(xp.sum(xp.sum(distance * plan, axis=-1), axis=-1))
    cost = xp.stack(costs)
    counts = xp.exp(-inverse_temperature * (cost - xp.fixed(xp.stack([min(costs, key=number)]))))
    counts = counts / xp.sum(counts, axis=0)
    return (sum(c * plan for c, plan in zip(counts, plans, strict=True)) @ v,)


def soft_order(xp, x, temperature, hard):
    """Rank by rank, the weight of each token in it."""
    order = ascending(x)
    if hard:
        return [0 * x + xp.asarray(np.eye(len(x))[i], x) for i in order]
    rows = []
    for i in order:
        exponent = -((x - x[i]) * (x - x[i])) / temperature
        row = xp.exp(exponent)  # its largest exponent is 0: token i itself
        rows.append(row / xp.sum(row, axis=0))
    return rows
