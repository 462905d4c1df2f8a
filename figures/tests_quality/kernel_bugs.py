"""Bugs of kernels: tiles, masks, memory, formats, arguments. Each is a change of the torch example.

``dtype`` is where the bug matters; PRELUDE is what the wrong texts may call.
"""

from bugs import bug

C, P, T, S = "entropic_c_transform", "transport_plan", "two_sided_c_transform", "sinkhorn"
K, L, F, A = "kantorovich_potentials_1d", "sliced_potentials", "dual_features", "amortized_query_dual"
M, N, E = "marginal_error", "asap_attention", "sliced_attention"

PRELUDE = '''
def online_lse(x, valid, dim, size=32, *, rescale=True, short=0, overlap=0, whole_tiles=False, guarded=True):
    """Log-sum-exp tile by tile with a running maximum."""
    far = torch.finfo(x.dtype).min / 4 if guarded else -torch.inf
    x = x.masked_fill(~valid, far).movedim(dim, -1)
    n = x.shape[-1]
    top, total = torch.full_like(x[..., 0], far), torch.zeros_like(x[..., 0])
    for start in range(0, n // size * size if whole_tiles and n > size else n, size):
        tile = x[..., max(start - overlap, 0) : start + size - (short if n > size else 0)]
        new = torch.maximum(top, tile.amax(-1))
        total = (total * (top - new).exp() if rescale else total) + (tile - new[..., None]).exp().sum(-1)
        top = new
    return top + total.log()


def online_attention(q, k, v, bias, scale, size=32, *, rescale=True):
    """Attention tile by tile over keys."""
    top = torch.full_like(q[..., 0], torch.finfo(q.dtype).min / 4)
    total, out = torch.zeros_like(top), 0
    for start in range(0, k.shape[-2], size):
        x = q @ k[..., start : start + size, :].mT * scale + bias[..., start : start + size]
        new = torch.maximum(top, x.amax(-1))
        share, old = (x - new[..., None]).exp(), (top - new).exp()
        total = total * old + share.sum(-1)
        out = (out * old[..., None] if rescale else out) + share @ v[..., start : start + size, :]
        top = new
    return out / total[..., None]


def naive_attention(q, k, v, bias, scale, *, top=True, shares=lambda P: P):
    x = q @ k.mT * scale + bias
    x = (x - x.amax(-1, keepdim=True) if top else x).exp()
    return shares(x / x.sum(-1, keepdim=True)) @ v


def tf32(x):
    mantissa, exponent = torch.frexp(x)
    return x + (torch.ldexp((mantissa * 2**11).round() / 2**11, exponent) - x).detach()


def as_length(mask):
    return None if mask is None else torch.arange(mask.shape[-1]) < mask.sum(-1, keepdim=True)


def without_holes(mask):
    return None if mask is None else mask.flip(-1).cummax(-1).values.flip(-1)


def of_first_head(mask):
    return mask if mask is None or mask.ndim < 3 else mask[..., :1, :].expand(mask.shape)


def of_first_sequence(mask):
    return mask if mask is None or mask.ndim < 2 else mask[:1].expand(mask.shape)


def from_pointer(x):
    """What a kernel reads that takes a pointer and trusts the shape."""
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride(), x.storage_offset())


def whole(x, size, dim):
    """Zero beyond the last whole tile."""
    n = x.shape[dim]
    seen = torch.arange(n) < (n // size * size if n > size else n)
    return x * seen.to(x.dtype).reshape(-1, *(1,) * (-1 - dim))


def short(x, dtype=torch.bfloat16):
    return x + (x.to(dtype).to(x.dtype) - x).detach()


class BackwardInHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.bfloat16().to(g.dtype)
'''

LSE = "return torch.logsumexp(x.masked_fill(~valid, torch.finfo(x.dtype).min / 4), dim)"
MASKS = "    q_alive, k_alive = q.any(-1, keepdim=True), k.any(-1, keepdim=True)\n"
TAKE = "    q = torch.ones_like(x[..., :, 0], dtype=torch.bool) if query_mask is None else query_mask.expand(x.shape[:-1])\n"
SDPA = "out = functional.scaled_dot_product_attention(q, k, v, bias, scale=1 / (math.sqrt(q.shape[-1]) * epsilon))"
BIAS = """bias = (g / epsilon).masked_fill(~valid[1], torch.finfo(g.dtype).min / 4)[..., None, :]
    bias = bias.expand(*bias.shape[:-2], q.shape[-2], -1)
    """
SCALE = "1 / (math.sqrt(q.shape[-1]) * epsilon)"
COUNT = "(mask.sum(-1, keepdim=True).clamp(min=1).to(S.dtype) for mask in valid)\n    return n / m"
RANKS = "return order, order.argsort(-1)"
ATTEND = "    return plan_times_values(q, k, v, key_dual.masked_fill(~valid[1], 0), epsilon, valid)\n"
UPDATES = "        g = key_update(S, f, epsilon, valid)\n        f = query_update(S, g, epsilon, valid)\n"
SORTED = "    order = x.masked_fill(~valid, torch.inf).argsort(dim=-1, stable=True)\n"
FALL = "fall = (slope[..., :-1] * xs.diff(dim=-1)).masked_fill(~there, 0)"
SCORES = "return q @ k.mT / math.sqrt(q.shape[-1])"
PLAN = "    return exponent.masked_fill(~pairs, -torch.inf).exp()\n"

BUGS = [
    # tiles
    bug("running sum not rescaled", C, "rising_scores tile_edges", LSE, "return online_lse(x, valid, dim, rescale=False)"),
    bug("last partial tile dropped", C, "tile_edges", LSE, "return online_lse(x, valid, dim, whole_tiles=True)"),
    bug("tiles one token short", C, "tile_edges", LSE, "return online_lse(x, valid, dim, short=1)"),
    bug("tiles overlap by a token", C, "tile_edges", LSE, "return online_lse(x, valid, dim, overlap=1)"),
    bug("only 64 tokens seen", C, "tile_edges many_tokens", LSE, "return online_lse(x.narrow(dim, 0, min(64, x.shape[dim])), valid.expand(x.shape).narrow(dim, 0, min(64, x.shape[dim])), dim)"),
    bug("accumulated values not rescaled", "attend", "rising_scores tile_edges", SDPA, f"out = online_attention(q, k, v, bias, {SCALE}, rescale=False)"),
    bug("last tile of keys dropped by attention", "attend", "tile_edges", SDPA, f"m = max(k.shape[-2] // 32 * 32, 32)\n    out = naive_attention(q, k[..., :m, :], v[..., :m, :], bias[..., :m], {SCALE})"),
    bug("last tile of queries not written", "attend", "tile_edges", "    return clean(out, valid[0])\n", "    return whole(clean(out, valid[0]), 16, -2)\n"),
    bug("last tile of scores not written", "attention_scores", "tile_edges", SCORES, "return whole(q @ k.mT / math.sqrt(q.shape[-1]), 32, -1)"),
    bug("last rows of the plan not written", P, "tile_edges", PLAN, "    return whole(exponent.masked_fill(~pairs, -torch.inf).exp(), 16, -2)\n"),
    bug("column error of 64 columns", M, "tile_edges many_tokens", "columns.masked_fill(~k, 0).amax(-1)", "columns.masked_fill(~k, 0)[..., :64].amax(-1)"),
    bug("psi from 64 samples", K, "tile_edges many_tokens", "gap.amin(-2) + mean", "gap[..., :64, :].amin(-2) + mean"),
    bug("64 ranks in the soft sort", E, "tile_edges soft_sort", "    return U.masked_fill(~(ranked & valid[..., None, :]), 0)", "    return U.masked_fill(~(ranked & valid[..., None, :] & (torch.arange(U.shape[-2]) < 64)[:, None]), 0)"),
    # widths of heads
    bug("products over whole groups of 8", "attention_scores", "head_size", SCORES, "e = max(q.shape[-1] // 8 * 8, min(8, q.shape[-1]))\n    return q[..., :e] @ k[..., :e].mT / math.sqrt(q.shape[-1])"),
    bug("products over 64 coordinates", "attention_scores", "head_size", SCORES, "return q[..., :64] @ k[..., :64].mT / math.sqrt(q.shape[-1])"),
    bug("values written in groups of 4", "attend", "head_size", "    return clean(out, valid[0])\n", "    return whole(clean(out, valid[0]), 4, -1)\n"),
    bug("scale of the padded head", "attention_scores", "head_size score_scale", SCORES, "return q @ k.mT / math.sqrt(-(-q.shape[-1] // 8) * 8)"),
    # counts and ranks
    bug("counts in 8 bits", C, "many_tokens", COUNT, "((mask.sum(-1, keepdim=True) % 256).clamp(min=1).to(S.dtype) for mask in valid)\n    return n / m"),
    bug("counts in bfloat16", C, "many_tokens unequal_lengths", COUNT, "(mask.sum(-1, keepdim=True).clamp(min=1).bfloat16().to(S.dtype) for mask in valid)\n    return n / m", dtype="float32"),
    bug("ranks in 8 bits", K, "many_tokens", RANKS, "return order, order.argsort(-1) % 256"),
    # masks
    bug("mask of queries taken for a length", C, "left_padding mask_holes", TAKE, "    query_mask = as_length(query_mask)\n" + TAKE),
    bug("mask of keys taken for a length", C, "left_padding mask_holes", TAKE, "    key_mask = as_length(key_mask)\n" + TAKE),
    bug("mask cut at its last token", C, "mask_holes", TAKE, "    query_mask, key_mask = without_holes(query_mask), without_holes(key_mask)\n" + TAKE),
    bug("mask of the first head for all", C, "mask_per_head", TAKE, "    query_mask, key_mask = of_first_head(query_mask), of_first_head(key_mask)\n" + TAKE),
    bug("mask of the first sequence for all", C, "leading_axes mask_holes left_padding", TAKE, "    query_mask, key_mask = of_first_sequence(query_mask), of_first_sequence(key_mask)\n" + TAKE),
    bug("mask of keys ignored without one of queries", C, "one_mask", TAKE, "    key_mask = None if query_mask is None else key_mask\n" + TAKE),
    bug("mask of queries ignored without one of keys", C, "one_mask", TAKE, "    query_mask = None if key_mask is None else query_mask\n" + TAKE),
    bug("token 0 always valid", C, "left_padding mask_holes", MASKS, "    q, k = (z | ((torch.arange(z.shape[-1]) == 0) & z.any(-1, keepdim=True)) for z in (q, k))\n" + MASKS),
    bug("first tile wholly masked gives NaN", C, "left_padding fully_masked", LSE, "return online_lse(x, valid, dim, guarded=False)"),
    bug("an empty row gives NaN backward", "attend", "fully_masked padding", BIAS + SDPA, BIAS.replace("torch.finfo(g.dtype).min / 4", "-torch.inf") + f"out = naive_attention(q, k, v, bias, {SCALE})"),
    bug("padding of scores times 0", C, "nan_in_padding", "return S.masked_fill(~(q[..., :, None] & k[..., None, :]), 0), (q, k)", "return S * (q[..., :, None] & k[..., None, :]), (q, k)"),
    bug("padding of tokens times 0", "lse", "nan_in_padding", "return x if mask is None else x.masked_fill(~mask[..., None], 0)", "return x if mask is None else x * mask[..., None]"),
    bug("padding seen by the backward pass", C, "nan_in_padding", "return S.masked_fill(~(q[..., :, None] & k[..., None, :]), 0), (q, k)", "return S, (q, k)"),
    bug("keys of padding attended to", "attend", "padding", "bias = (g / epsilon).masked_fill(~valid[1], torch.finfo(g.dtype).min / 4)[..., None, :]", "bias = (g / epsilon)[..., None, :]"),
    bug("rows of padding not zeroed", "attend", "padding", "    return clean(out, valid[0])\n", "    return out\n"),
    bug("plan by the mask of keys alone", P, "padding one_mask", "    pairs = q[..., :, None] & k[..., None, :]\n    exponent", "    pairs = (q | True)[..., :, None] & k[..., None, :]\n    exponent"),
    bug("plan times the mask", P, "large_logits padding nan_in_padding", PLAN, "    return exponent.exp() * pairs\n", dtype="float32"),
    bug("padding sorted as 0", K, "padding mask_holes left_padding", SORTED, "    order = x.masked_fill(~valid, 0).argsort(dim=-1, stable=True)\n"),
    bug("samples of y masked only with x", K, "one_mask", "x_mask, y_mask)\n    x, y = x.masked", "x_mask, None if x_mask is None else y_mask)\n    x, y = x.masked"),
    bug("mean of keys over padding", F, "padding cumulants quadratic", "clean(x, valid), valid.sum(-1)[..., None, None].clamp(min=1)", "clean(x, valid), torch.full_like(valid.sum(-1), x.shape[-2])[..., None, None]"),
    bug("ranks of all tokens coupled", E, "rank_coupling padding", "n, m = (mask.sum(-1)[..., None, None].clamp(min=1).to(q.dtype) for mask in valid)", "n, m = (torch.full_like(mask.sum(-1), mask.shape[-1])[..., None, None].to(q.dtype) for mask in valid)"),
    bug("loss per token of the padded sequence", "kl_loss", "padding calibration_loss one_mask", "(epsilon * valid[0].sum(-1).clamp(min=1))", "(epsilon * scores.shape[-2])"),
    bug("column sums of padded lengths", M, "padding one_mask", "(plan.sum(-2) - column_mass(plan, (q, k)))", "(plan.sum(-2) - plan.shape[-2] / plan.shape[-1])"),
    # formats
    bug("products in TF32", "attention_scores", "full_mantissa", SCORES, "return tf32(q) @ tf32(k).mT / math.sqrt(q.shape[-1])", dtype="float32"),
    bug("probabilities in bfloat16", "attend", "full_mantissa", SDPA, f"out = naive_attention(q, k, v, bias, {SCALE}, shares=short)", dtype="float32"),
    bug("values in bfloat16", "attend", "full_mantissa", SDPA, SDPA.replace("q, k, v, bias", "q, k, short(v), bias"), dtype="float32"),
    bug("values in float32", "attend", "float32_inside full_mantissa", SDPA, SDPA.replace("q, k, v, bias", "q, k, short(v, torch.float32), bias")),
    bug("bias of keys in half precision", "attend", "full_mantissa", "plan_times_values(q, k, v, key_dual.masked_fill", "plan_times_values(q, k, v, short(key_dual, torch.float16).masked_fill", dtype="float32"),
    bug("cotangents in bfloat16", "attend", "full_mantissa gradient_through_both_sides", "    return clean(out, valid[0])\n", "    return BackwardInHalf.apply(clean(out, valid[0]))\n", dtype="float32"),
    bug("exponent without a maximum", "attend", "large_logits rising_scores", SDPA, f"out = naive_attention(q, k, v, bias, {SCALE}, top=False)", dtype="float32"),
    bug("duals in bfloat16 between iterations", T, "full_mantissa two_sided", UPDATES, "        g = short(key_update(S, f, epsilon, valid))\n        f = short(query_update(S, g, epsilon, valid))\n", dtype="float32"),
    bug("scores in float16", C, "full_mantissa", "    S, valid = without_padding(scores, query_mask, key_mask)\n    dual", "    S, valid = without_padding(short(scores, torch.float16), query_mask, key_mask)\n    dual", dtype="float32"),
    bug("sums after the sort in bfloat16", K, "full_mantissa trapezoid", FALL, f"{FALL.replace('fall = (', 'fall = short((')})", dtype="float32"),
    bug("sort by float16", K, "full_mantissa sort_order", SORTED, "    order = x.half().masked_fill(~valid, torch.inf).argsort(dim=-1, stable=True)\n", dtype="float32"),
    bug("columns of the teacher in bfloat16", "kl_loss", "full_mantissa calibration_loss", "(teacher_columns * g).sum(-1)", "(short(teacher_columns) * g).sum(-1)", dtype="float32"),
    bug("weights of features in bfloat16", A, "full_mantissa head_weights", "(weights[:, :, None] * features)", "(short(weights)[:, :, None] * features)", dtype="float32"),
    # levels and weights
    bug("levels as floats", K, "common_levels", "slack = 8 * torch.finfo(x.dtype).eps * A[..., -1:, None]", "A, B = (a_sorted / a.sum(-1, keepdim=True)).cumsum(-1), (b_sorted / b.sum(-1, keepdim=True)).cumsum(-1)\n    slack = 0"),
    bug("centring without the weights", K, "weights centring", "mean = (a * phi.masked_fill(~x_valid, 0)).sum(-1, keepdim=True) / a.sum(-1, keepdim=True).clamp(min=1e-30)", "mean = phi.masked_fill(~x_valid, 0).sum(-1, keepdim=True) / x_valid.sum(-1, keepdim=True).clamp(min=1)"),
    bug("weights of y only without masks", K, "weights padding", "for z, weights, valid in ((x, x_weights, x_valid), (y, y_weights, y_valid))", "for z, weights, valid in ((x, x_weights, x_valid), (y, y_weights if y_mask is None else None, y_valid))"),
    # arguments that meet
    bug("init only without masks", S, "init padding", "    if init is None:\n", "    if init is None or query_mask is not None:\n"),
    bug("init's padding seen", S, "nan_in_padding init", "    f = f.masked_fill(~valid[0], 0)\n    for", "    f = f + 0\n    for"),
    bug("refine only without masks", N, "refine padding", "f, _ = iterate(S, f, refine, epsilon, valid)", "f, _ = iterate(S, f, refine if key_mask is None else 0, epsilon, valid)"),
    bug("one iteration fewer from the third on", S, "not_converged", "    return iterate(S, init, n_iter, epsilon, valid)", "    return iterate(S, init, n_iter - (n_iter > 2), epsilon, valid)"),
    bug("stops when nearly converged", S, "not_converged", "    return iterate(S, init, n_iter, epsilon, valid)", "    return iterate(S, init, min(n_iter, 2), epsilon, valid)"),
    bug("directions of the first head for all", A, "head_directions", "    features = dual_features(q, k, directions, basis", "    features = dual_features(q, k, directions[:1].expand(directions.shape) if directions.ndim > 2 else directions, basis"),
    bug("epsilon of the bias forgotten", "attend", "epsilon_scaling", "bias = (g / epsilon).masked_fill", "bias = (g / 1).masked_fill"),
    bug("bias of the first head for all", "attend", "leading_axes", "plan_times_values(q, k, v, key_dual.masked_fill", "plan_times_values(q, k, v, (key_dual if key_dual.ndim < 3 else key_dual[..., :1, :].expand(key_dual.shape)).masked_fill"),
    # memory and the call
    bug("strides of scores ignored", C, "memory_layout", "    S, valid = without_padding(scores, query_mask, key_mask)\n    dual", "    S, valid = without_padding(from_pointer(scores), query_mask, key_mask)\n    dual"),
    bug("strides of values ignored", "attend", "memory_layout", "    q, k, v = clean(q, query_mask), clean(k, key_mask), clean(v, key_mask)\n    valid = valid_tokens(q[..., :, :1] + k[..., None, :, 0], query_mask, key_mask)\n    return", "    q, k, v = clean(q, query_mask), clean(k, key_mask), clean(from_pointer(v), key_mask)\n    valid = valid_tokens(q[..., :, :1] + k[..., None, :, 0], query_mask, key_mask)\n    return"),
    bug("queries scaled in place", "attention_scores", "changed_inputs exception", SCORES, "q.data.mul_(1 / math.sqrt(q.shape[-1]))\n    return q @ k.mT"),
    bug("padding zeroed in place", C, "changed_inputs", "    S, valid = without_padding(scores, query_mask, key_mask)\n    dual", "    scores.data.clamp_(max=4)\n    S, valid = without_padding(scores, query_mask, key_mask)\n    dual"),
    bug("float32 returned for half", "attention_scores", "wrong_dtype", "else found.to(short)", "else found", dtype="float16"),
    bug("only the query dual returned", S, "missing_output", "    return iterate(S, init, n_iter, epsilon, valid)", "    return iterate(S, init, n_iter, epsilon, valid)[0]"),
    # backward
    bug("no gradient to the bias", "attend", "gradient_through_both_sides", "plan_times_values(q, k, v, key_dual.masked_fill", "plan_times_values(q, k, v, key_dual.detach().masked_fill"),
    bug("half the gradient to the values", "attend", "gradient_through_both_sides", SDPA, SDPA.replace("q, k, v, bias", "q, k, (v + v.detach()) / 2, bias")),
    bug("gradient through the last iteration alone", S, "gradient_through_both_sides", "    return iterate(S, init, n_iter, epsilon, valid)", "    init, _ = (x.detach() for x in iterate(S, init, max(n_iter - 1, 0), epsilon, valid))\n    return iterate(S, init, min(n_iter, 1), epsilon, valid)"),
]  # fmt: skip
