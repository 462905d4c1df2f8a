"""Realistic bugs, each a change of a line or two of the torch example: what people get wrong, and where to look.

A bug is (name, operator where it sits, flags whose hint describes it, the right text, the wrong text). The flags
were written down before the oracle was asked.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One change of the source, with what an able report should point at."""

    name: str
    operator: str  # the lowest one that is wrong
    flags: tuple
    right: str
    wrong: str
    dtype: str = "float64"


def bug(name, operator, flags, right, wrong, **more):
    return Bug(name, operator, tuple(flags.split()), right, wrong, **more)


C, P, T, S = "entropic_c_transform", "transport_plan", "two_sided_c_transform", "sinkhorn"
K, L, F, A = "kantorovich_potentials_1d", "sliced_potentials", "dual_features", "amortized_query_dual"
H, N, E, W = "sinkhorn_attention", "asap_attention", "sliced_attention", "fit_amortizer"
LSE = "return torch.logsumexp(x.masked_fill(~valid, torch.finfo(x.dtype).min / 4), dim)"
STEPS = """        g = key_update(S, f, epsilon, valid)
        f = query_update(S, g, epsilon, valid)
"""
STEPS_SWAPPED = """        f = query_update(S, g, epsilon, valid)
        g = key_update(S, f, epsilon, valid)
"""
STEPS_STOPPED = """        before, g = f, key_update(S, f, epsilon, valid)
        f = query_update(S, g, epsilon, valid)
        if (f - before).abs().max() < 0.5:
            break
"""
STEPS_DETACHED = """        g = key_update(S, f, epsilon, valid).detach()
        f = query_update(S, g, epsilon, valid)
"""
EXPONENT = """    exponent = ((f[..., :, None] + g[..., None, :]) + S) / epsilon
    return exponent.masked_fill(~pairs, -torch.inf).exp()
"""
KERNELS = """    f, g = (f / epsilon).exp()[..., :, None], (g / epsilon).exp()[..., None, :]
    return (f * (S / epsilon).exp() * g).masked_fill(~pairs, 0)
"""

BUGS = [
    bug("scores divided by d", "attention_scores", "score_scale", "q @ k.mT / math.sqrt(q.shape[-1])", "q @ k.mT / q.shape[-1]"),
    bug("scores not divided", "attention_scores", "score_scale", "q @ k.mT / math.sqrt(q.shape[-1])", "q @ k.mT"),
    bug("cost in place of similarity", "attention_scores", "score_scale sign", "return q @ k.mT / math", "return -q @ k.mT / math"),
    bug("epsilon forgotten before the log-sum-exp", C, "epsilon_scaling", "(-epsilon * log_sum_exp", "(-log_sum_exp"),
    bug("epsilon divides the scores only", C, "epsilon_scaling", "(f[..., :, None] + S) / epsilon, q[..., :, None], -2)\n    return (epsilon", "f[..., :, None] + S / epsilon, q[..., :, None], -2)\n    return (epsilon"),
    bug("log-sum-exp without its maximum", C, "large_logits", LSE, "return torch.log(x.exp().masked_fill(~valid, 0).sum(dim))"),
    bug("maximum over all problems at once", C, "leading_axes large_logits", LSE, "top = x.masked_fill(~valid, -1e30).amax()\n    return torch.log((x - top).exp().masked_fill(~valid, 0).sum(dim)) + top"),
    bug("keys summed over, not queries", C, "row_instead_of_column", "(f[..., :, None] + S) / epsilon, q[..., :, None], -2)", "(f[..., :, None] + S) / epsilon, q[..., :, None], -1)"),
    bug("queries summed over with S not turned", C, "row_instead_of_column", "(g[..., None, :] + S) / epsilon, k[..., None, :], -1)", "(g[..., None, :] + S) / epsilon, k[..., None, :], -2)"),
    bug("n/m upside down", C, "unequal_lengths", "return n / m", "return m / n"),
    bug("n/m forgotten", C, "unequal_lengths", "torch.log(column_mass(S, valid)) - log_sum_exp", "-log_sum_exp"),
    bug("n/m in float32", C, "unequal_lengths float32_inside", "clamp(min=1).to(S.dtype) for mask in valid)\n    return n / m", "clamp(min=1) for mask in valid)\n    return (n / m).to(S.dtype)"),
    bug("n and m count padding", C, "padding", "mask.sum(-1, keepdim=True).clamp(min=1).to(S.dtype)", "torch.ones_like(mask).sum(-1, keepdim=True).to(S.dtype)"),
    bug("mask forgotten inside the log-sum-exp", C, "padding", LSE, "return torch.logsumexp(x, dim)"),
    bug("mask added after the exponential", C, "padding", LSE, "top = x.amax(dim, keepdim=True)\n    return torch.log(((x - top).exp() + 1e-6 * ~valid).sum(dim)) + top.squeeze(dim)"),
    bug("mask of -1e4 in place of minus infinity", C, "padding fully_masked", "torch.finfo(x.dtype).min / 4), dim)", "-1e4), dim)"),
    bug("an empty side leaves the other alive", C, "fully_masked", "return q & k_alive, k & q_alive", "return q, k"),
    bug("duals at padding not zero", C, "padding", "return (epsilon * g).masked_fill(~k, 0)", "return epsilon * g"),
    bug("key dual in place of query dual", P, "key_dual_for_query_dual", "((f[..., :, None] + g[..., None, :]) + S)", "((f[..., None, :] + g[..., :, None]) + S)"),
    bug("plan as a product of kernels", P, "large_logits gauge", EXPONENT, KERNELS),
    bug("plan without epsilon", P, "epsilon_scaling", "+ g[..., None, :]) + S) / epsilon", "+ g[..., None, :]) + S)"),
    bug("dual subtracted", P, "sign", "((f[..., :, None] + g[..., None, :]) + S)", "((f[..., :, None] - g[..., None, :]) + S)"),
    bug("half steps swapped", T, "wrong_half_step_order two_sided", STEPS, STEPS_SWAPPED),
    bug("the prediction returned", T, "two_sided", "return iterate(S, query_dual, 1, epsilon, valid)\n\n\n@computed_in_float32\ndef sinkhorn(", "return query_dual, iterate(S, query_dual, 1, epsilon, valid)[1]\n\n\n@computed_in_float32\ndef sinkhorn("),
    bug("gradient stopped at the key side", T, "gradient_through_both_sides", STEPS, STEPS_DETACHED),
    bug("start from zero", S, "softmax_start", "init = query_update(S, torch.zeros_like(S[..., 0, :]), epsilon, valid)", "init = torch.zeros_like(scores[..., :, 0])"),
    bug("init ignored", S, "init", "    if init is None:\n        init =", "    if True:\n        init ="),
    bug("one iteration more", S, "not_converged", "return iterate(S, init, n_iter, epsilon, valid)", "return iterate(S, init, n_iter + 1, epsilon, valid)"),
    bug("n_iter counts half steps", S, "not_converged", "return iterate(S, init, n_iter, epsilon, valid)", "return iterate(S, init, n_iter // 2, epsilon, valid)"),
    bug("early stop", S, "not_converged", STEPS, STEPS_STOPPED),
    bug("columns held to 1", "marginal_error", "unequal_lengths padding", "(plan.sum(-2) - column_mass(plan, (q, k))).abs()", "(plan.sum(-2) - 1).abs()"),
    bug("y sorted descending", K, "sort_order", "y_order, _ = ascending(y, y_valid)", "y_order, _ = ascending(-y, y_valid)"),
    bug("permutation in place of its inverse", K, "sort_order", "(1, 0)).gather(-1, ranks)", "(1, 0)).gather(-1, order)"),
    bug("left slope, no trapezoid", K, "trapezoid", "(ys.gather(-1, left) + ys.gather(-1, right)) / 2", "ys.gather(-1, left)"),
    bug("potential rises", K, "trapezoid sign", "phi = -functional.pad", "phi = functional.pad"),
    bug("squared cost without its half", K, "squared_cost_half", "phi + x**2 / 2, (x[..., :, None] - y[..., None, :]) ** 2 / 2", "phi + x**2, (x[..., :, None] - y[..., None, :]) ** 2"),
    bug("weights ignored", K, "weights", "torch.ones_like(z) if weights is None else weights.expand(z.shape)", "torch.ones_like(z)"),
    bug("padding sorted with the rest", K, "padding", "order = x.masked_fill(~valid, torch.inf).argsort", "order = x.argsort"),
    bug("slope as a quotient of differences", K, "ties_in_sort", "fall = (slope[..., :-1] * xs.diff(dim=-1))", "fall = (slope[..., :-1] * xs.diff(dim=-1) ** 2 / xs.diff(dim=-1))"),
    bug("float32 accumulation after the sort", K, "float32_inside", "-functional.pad(fall.cumsum(-1), (1, 0))", "-functional.pad(fall.float().cumsum(-1).to(fall.dtype), (1, 0))"),
    bug("slices scaled by d^(-1/2)", L, "slice_scale", "scale = q.shape[-1] ** -0.25", "scale = q.shape[-1] ** -0.5"),
    bug("key potentials not centred", L, "centring", "return centred(phi, x_valid), centred(psi, y_valid)", "return centred(phi, x_valid), psi"),
    bug("mean over padding too", L, "padding centring", "valid.sum(-1, keepdim=True).clamp(min=1)).masked_fill", "x.shape[-1]).masked_fill"),
    bug("directions not unit", "slice_directions", "orthogonal_slices", "functional.normalize(block, dim=0)", "block"),
    bug("covariance divided by m - 1", F, "cumulants", "spread.mT @ spread / count", "spread.mT @ spread / (count - 1)"),
    bug("second moment in place of covariance", F, "cumulants", "clean(x - mean, valid)", "clean(x, valid)"),
    bug("cumulants of unscaled queries", F, "cumulants", "u = q / math.sqrt(q.shape[-1])", "u = q"),
    bug("moments over padding too", F, "padding", "clean(x, valid), valid.sum(-1)[..., None, None].clamp(min=1)", "clean(x, valid), x.shape[-2]"),
    bug("quadratic features in another order", F, "quadratic", "pairs = [u[..., a] * u[..., b] for a, b in upper(u)]", "pairs = [u[..., a] * u[..., b] for b in range(u.shape[-1]) for a in range(b + 1)]"),
    bug("mixed features in another order", F, "quadratic", "for b in range(w.shape[-1]) for a in range(w.shape[-1])", "for a in range(w.shape[-1]) for b in range(w.shape[-1])"),
    bug("all heads have the weights of the first", A, "head_weights", "weights[:, :, None]", "weights[:1, :, None]"),
    bug("key bias not divided by epsilon", H, "epsilon_scaling", "bias = (g / epsilon)", "bias = g"),
    bug("values of the attention: default scale", H, "epsilon_scaling", "scale=1 / (math.sqrt(q.shape[-1]) * epsilon)", "scale=None"),
    bug("half precision computed in half", C, "half_precision_overflow", "    if short is None:\n".replace("    if", "        if"), "        if True:\n", dtype="float16"),
    bug("further iterations ignored", N, "refine", "iterate(S, f, refine, epsilon, valid)", "iterate(S, f, 0, epsilon, valid)"),
    bug("gradient stopped at the prediction", N, "gradient_through_both_sides", "mask, key_mask, cumulants=cumulants)\n    valid", "mask, key_mask, cumulants=cumulants).detach()\n    valid"),
    bug("only the key side transformed", N, "two_sided", "    return plan_times_values(q, k, v, key_update(S, f, epsilon, valid), epsilon, valid)", "    g = key_update(S, f, epsilon, valid)\n    return transport_plan(S, f, g, query_mask, key_mask, epsilon=epsilon) @ v"),
    bug("squared distances", E, "slice_weights", "distance = gap.masked_fill(~apart, 1).sqrt()", "distance = gap.masked_fill(~apart, 1)"),
    bug("mean cost, not the sum", E, "slice_weights", "(distance[..., None, :, :] * plans).sum((-2, -1))", "(distance[..., None, :, :] * plans).mean((-2, -1))"),
    bug("soft sort normalised over ranks", E, "soft_sort", "torch.finfo(x.dtype).min / 4), -1)\n    return U", "torch.finfo(x.dtype).min / 4), -2)\n    return U"),
    bug("ranks matched by truncation", E, "rank_coupling", "(n * shared.clamp(min=0))", "(r == s).to(q.dtype)"),
    bug("teacher's columns forgotten", "kl_loss", "calibration_loss", "(teacher_columns * g).sum(-1)", "g.sum(-1)"),
    bug("semi-dual with n/m forgotten", "dual_loss", "unequal_lengths", "f_hat.sum(-1) + mass * g.sum(-1)", "f_hat.sum(-1) + g.sum(-1)"),
    bug("semi-dual minimised, not maximised", "dual_loss", "sign calibration_loss", "return -(f_hat.sum(-1)", "return (f_hat.sum(-1)"),
    bug("target after one iteration too many", W, "normal_equations", "n_iter=n_iter - 1, epsilon=epsilon)", "n_iter=n_iter, epsilon=epsilon)"),
    bug("ridge not relative", W, "normal_equations", "torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))", "torch.eye(gram.shape[-1], dtype=gram.dtype)"),
    bug("target not centred", W, "centring normal_equations", "target = target - target.mean(-1, keepdim=True)", "target = 1 * target"),
    bug("decay inside the gradient", "training_trace", "optimizer", "torch.optim.AdamW(", "torch.optim.Adam("),
    bug("decay on biases and gains too", "training_trace", "optimizer", '{"params": others, "weight_decay": 0.0}', '{"params": others, "weight_decay": weight_decay}'),
    bug("exact GELU", "training_trace", "transformer", 'approximate="tanh"', 'approximate="none"'),
    bug("mean over tokens in place of the class token", "training_trace", "transformer", 'norm(x[:, 0], "norm")', 'norm(x.mean(1), "norm")'),
    bug("one amortizer for all layers", "compile_model", "compile", "directions, weights[i], cumulants", "directions, weights[0], cumulants"),
]  # fmt: skip
