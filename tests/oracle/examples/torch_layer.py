"""ASAP attention in torch, written from the oracle's README alone: functions, and a layer to put into a model.

    asap-ref oracle check tests/oracle/examples/torch_layer.py

Nothing here comes from asap_ref. Functions take any leading axes; the layer loads a calibrated amortizer from the
.npz that `Amortizer.save` writes, and trains its own projections by autograd.
"""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def to_array(x, dtype):
    """What the oracle passes: NumPy to torch."""
    return torch.tensor(x, dtype=getattr(torch, dtype))


def computed_in_float32(function):
    """Take half precision, compute in float32, and return half precision."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        arrays = [x for x in (*args, *kwargs.values()) if torch.is_tensor(x) and x.is_floating_point()]
        short = arrays[0].dtype if arrays and arrays[0].dtype in (torch.float16, torch.bfloat16) else None
        if short is None:
            return function(*args, **kwargs)
        widen = lambda x: x.float() if torch.is_tensor(x) and x.dtype == short else x  # noqa: E731
        found = function(*map(widen, args), **{name: widen(x) for name, x in kwargs.items()})
        return tuple(x.to(short) for x in found) if isinstance(found, tuple) else found.to(short)

    return wrapped


# ----------------------------------------------------------------------------------------------------------- masks


def valid_tokens(x, query_mask, key_mask):
    """(..., n), (..., m) masks for scores x (..., n, m); a side without any token takes the other with it."""
    q = torch.ones_like(x[..., :, 0], dtype=torch.bool) if query_mask is None else query_mask.expand(x.shape[:-1])
    k = torch.ones_like(x[..., 0, :], dtype=torch.bool) if key_mask is None else key_mask.expand(*x.shape[:-2], -1)
    q_alive, k_alive = q.any(-1, keepdim=True), k.any(-1, keepdim=True)
    return q & k_alive, k & q_alive


def without_padding(S, query_mask, key_mask):
    """Scores with padding set to 0, which may hold NaN, and the valid tokens of both sides."""
    q, k = valid_tokens(S, query_mask, key_mask)
    return S.masked_fill(~(q[..., :, None] & k[..., None, :]), 0), (q, k)


def log_sum_exp(x, valid, dim):
    """Log-sum-exp over valid entries; far away, but finite, where there is none, so that gradients are 0 there."""
    return torch.logsumexp(x.masked_fill(~valid, torch.finfo(x.dtype).min / 4), dim)


def centred(x, valid):
    """x (..., n) less its mean over valid tokens, 0 elsewhere."""
    valid = valid.expand(x.shape)
    x = x.masked_fill(~valid, 0)
    return (x - x.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)).masked_fill(~valid, 0)


def clean(x, mask):
    """Tokens x (..., n, d) with padding set to 0."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)


# ------------------------------------------------------------------------------------------------- scores and duals


@computed_in_float32
def attention_scores(q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


def column_mass(S, valid):
    """n'/m' (..., 1), in the dtype of S: a quotient of integers would be float32."""
    n, m = (mask.sum(-1, keepdim=True).clamp(min=1).to(S.dtype) for mask in valid)
    return n / m


def key_update(S, f, epsilon, valid):
    q, k = valid
    g = torch.log(column_mass(S, valid)) - log_sum_exp((f[..., :, None] + S) / epsilon, q[..., :, None], -2)
    return (epsilon * g).masked_fill(~k, 0)


def query_update(S, g, epsilon, valid):
    q, k = valid
    return (-epsilon * log_sum_exp((g[..., None, :] + S) / epsilon, k[..., None, :], -1)).masked_fill(~q, 0)


@computed_in_float32
def entropic_c_transform(scores, dual, query_mask=None, key_mask=None, *, onto, epsilon):
    S, valid = without_padding(scores, query_mask, key_mask)
    dual = dual.masked_fill(~valid[0 if onto == "key" else 1], 0)
    return (key_update if onto == "key" else query_update)(S, dual, epsilon, valid)


def iterate(S, f, n_iter, epsilon, valid):
    g = torch.zeros_like(S[..., 0, :])
    f = f.masked_fill(~valid[0], 0)
    for _ in range(n_iter):
        g = key_update(S, f, epsilon, valid)
        f = query_update(S, g, epsilon, valid)
    return f, g


@computed_in_float32
def two_sided_c_transform(scores, query_dual, query_mask=None, key_mask=None, *, epsilon):
    S, valid = without_padding(scores, query_mask, key_mask)
    return iterate(S, query_dual, 1, epsilon, valid)


@computed_in_float32
def sinkhorn(scores, init=None, query_mask=None, key_mask=None, *, n_iter, epsilon):
    S, valid = without_padding(scores, query_mask, key_mask)
    if init is None:
        init = query_update(S, torch.zeros_like(S[..., 0, :]), epsilon, valid)
    return iterate(S, init, n_iter, epsilon, valid)


@computed_in_float32
def transport_plan(scores, query_dual, key_dual, query_mask=None, key_mask=None, *, epsilon):
    S, (q, k) = without_padding(scores, query_mask, key_mask)
    f, g = query_dual.masked_fill(~q, 0), key_dual.masked_fill(~k, 0)
    pairs = q[..., :, None] & k[..., None, :]
    exponent = ((f[..., :, None] + g[..., None, :]) + S) / epsilon
    return exponent.masked_fill(~pairs, -torch.inf).exp()


@computed_in_float32
def marginal_error(plan, query_mask=None, key_mask=None):
    q, k = valid_tokens(plan, query_mask, key_mask)
    rows, columns = (plan.sum(-1) - 1).abs(), (plan.sum(-2) - column_mass(plan, (q, k))).abs()
    return rows.masked_fill(~q, 0).amax(-1), columns.masked_fill(~k, 0).amax(-1)


# ---------------------------------------------------------------------------------------------- slices and features


@computed_in_float32
def kantorovich_potentials_1d(x, y, x_weights=None, y_weights=None, x_mask=None, y_mask=None, *, cost):
    x_valid, y_valid = valid_tokens(x[..., :, None] + y[..., None, :], x_mask, y_mask)
    x, y = x.masked_fill(~x_valid, 0), y.masked_fill(~y_valid, 0)
    a, b = (
        (torch.ones_like(z) if weights is None else weights.expand(z.shape)).masked_fill(~valid, 0)
        for z, weights, valid in ((x, x_weights, x_valid), (y, y_weights, y_valid))
    )
    order, ranks = ascending(x, x_valid)
    xs, a_sorted = x.gather(-1, order), a.gather(-1, order)
    y_order, _ = ascending(y, y_valid)
    ys, b_sorted = y.gather(-1, y_order), b.gather(-1, y_order)

    # levels over a common denominator, so that those of whole numbers are whole
    A, B = a_sorted.cumsum(-1) * b.sum(-1, keepdim=True), b_sorted.cumsum(-1) * a.sum(-1, keepdim=True)
    slack = 8 * torch.finfo(x.dtype).eps * A[..., -1:, None]
    last = (y_valid.sum(-1, keepdim=True) - 1).clamp(min=0)
    left = (B[..., None, :] < A[..., :, None] - slack).sum(-1).minimum(last)
    right = (B[..., None, :] <= A[..., :, None] + slack).sum(-1).minimum(last)
    slope = (ys.gather(-1, left) + ys.gather(-1, right)) / 2
    there = x_valid.gather(-1, order)[..., 1:]  # padding comes last
    fall = (slope[..., :-1] * xs.diff(dim=-1)).masked_fill(~there, 0)
    phi = -functional.pad(fall.cumsum(-1), (1, 0)).gather(-1, ranks)

    if cost == "sqeuclidean":
        phi, pairs = phi + x**2 / 2, (x[..., :, None] - y[..., None, :]) ** 2 / 2
    else:
        pairs = -x[..., :, None] * y[..., None, :]
    gap = (pairs - phi[..., :, None]).masked_fill(~x_valid[..., :, None], torch.finfo(x.dtype).max / 4)
    mean = (a * phi.masked_fill(~x_valid, 0)).sum(-1, keepdim=True) / a.sum(-1, keepdim=True).clamp(min=1e-30)
    return (phi - mean).masked_fill(~x_valid, 0), (gap.amin(-2) + mean).masked_fill(~y_valid, 0)


def ascending(x, valid):
    """(order, ranks) of x along the last axis, padding last."""
    order = x.masked_fill(~valid, torch.inf).argsort(dim=-1, stable=True)
    return order, order.argsort(-1)


@computed_in_float32
def sliced_potentials(q, k, directions, query_mask=None, key_mask=None):
    scale = q.shape[-1] ** -0.25
    x, y = (scale * (clean(z, mask) @ directions).mT for z, mask in ((q, query_mask), (k, key_mask)))
    masks = [None if mask is None else mask[..., None, :] for mask in (query_mask, key_mask)]
    phi, psi = kantorovich_potentials_1d(x, y, x_mask=masks[0], y_mask=masks[1], cost="bilinear")
    x_valid, y_valid = valid_tokens(x[..., :, None] + y[..., None, :], *masks)
    return centred(phi, x_valid), centred(psi, y_valid)


def mean_and_covariance(x, valid):
    """(..., n, d) -> (..., 1, d), (..., d, d), over valid tokens."""
    x, count = clean(x, valid), valid.sum(-1)[..., None, None].clamp(min=1)
    mean = x.sum(-2, keepdim=True) / count
    spread = clean(x - mean, valid)
    return mean, spread.mT @ spread / count


def features_of(family):
    """A family of features: its rows from q and k without padding, and the valid tokens of both sides."""

    @computed_in_float32
    def features(q, k, basis=None, query_mask=None, key_mask=None):
        q, k = clean(q, query_mask), clean(k, key_mask)
        valid = valid_tokens(q[..., :, :1] + k[..., None, :, 0], query_mask, key_mask)
        rows = family(q, k, valid) if basis is None else family(q, k, valid, basis)
        return centred(torch.stack(rows, -2), valid[0][..., None, :])

    return features


@features_of
def cumulant_features(q, k, valid):
    u = q / math.sqrt(q.shape[-1])
    mean, cov = mean_and_covariance(k, valid[1])
    return [(u * mean).sum(-1), (u * u).sum(-1), ((u @ cov) * u).sum(-1)]


@features_of
def quadratic_features(q, k, valid, basis):
    mean, _ = mean_and_covariance(k, valid[1])
    u, w = (q.shape[-1] ** -0.25 * z @ basis for z in (q, mean))  # (..., n, r), (..., 1, r)
    pairs = [u[..., a] * u[..., b] for a, b in upper(u)]
    return [
        *u.unbind(-1),
        *pairs,
        *(u[..., a] * w[..., b] for b in range(w.shape[-1]) for a in range(w.shape[-1])),
    ]


@features_of
def moment_features(q, k, valid, basis):
    u, w = (q.shape[-1] ** -0.25 * z @ basis for z in (q, k))
    mean, Cu = mean_and_covariance(u, valid[0])
    _, Cw = mean_and_covariance(w, valid[1])
    entries = torch.cat([mean[..., 0, :], *(C.diagonal(dim1=-2, dim2=-1) for C in (Cw, Cu))], -1)  # (..., 3r)
    rows = [u[..., a] * s[..., None] for s in entries.unbind(-1) for a in range(u.shape[-1])]
    return rows + [u[..., a] * u[..., b] * C[..., a, b, None] for C in (Cw, Cu) for a, b in upper(u)]


def upper(u):
    """Pairs a <= b of coordinates."""
    return [(a, b) for a in range(u.shape[-1]) for b in range(a, u.shape[-1])]


@computed_in_float32
def dual_features(q, k, directions, basis=None, query_mask=None, key_mask=None, *, cumulants):
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    families = [sliced_potentials(q, k, directions, **masks)[0]]
    families += [cumulant_features(q, k, **masks)] if cumulants else []
    families += [quadratic_features(q, k, basis, **masks)] if basis is not None else []
    return torch.cat(families, -2)


@computed_in_float32
def amortized_query_dual(q, k, directions, weights, basis=None, query_mask=None, key_mask=None, *, cumulants):
    features = dual_features(q, k, directions, basis, query_mask, key_mask, cumulants=cumulants)
    return (weights[:, :, None] * features).sum(-2)


def slice_directions(dim, n_slices, kind, seed):
    random = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(-(-n_slices // dim)):
        block = torch.randn(dim, dim, generator=random, dtype=torch.float64)
        blocks.append(torch.linalg.qr(block)[0] if kind == "orthogonal" else functional.normalize(block, dim=0))
    return torch.cat(blocks, -1)[:, :n_slices]


# -------------------------------------------------------------------------------------------------------- attentions


def plan_times_values(q, k, v, g, epsilon, valid):
    """A plan with exact rows is a row softmax of (S + g) / epsilon: torch's own attention with a bias for each key."""
    bias = (g / epsilon).masked_fill(~valid[1], torch.finfo(g.dtype).min / 4)[..., None, :]
    bias = bias.expand(*bias.shape[:-2], q.shape[-2], -1)
    out = functional.scaled_dot_product_attention(q, k, v, bias, scale=1 / (math.sqrt(q.shape[-1]) * epsilon))
    return clean(out, valid[0])


@computed_in_float32
def lse(q, k, query_dual, query_mask=None, key_mask=None, *, epsilon):
    """The first building block of a kernel: the c-transform onto keys without the mass n'/m'."""
    S = attention_scores(clean(q, query_mask), clean(k, key_mask))
    q_valid, k_valid = valid_tokens(S, query_mask, key_mask)
    f = query_dual.masked_fill(~q_valid, 0)
    g = -epsilon * log_sum_exp((f[..., :, None] + S) / epsilon, q_valid[..., :, None], -2)
    return g.masked_fill(~k_valid, 0)


@computed_in_float32
def attend(q, k, v, key_dual, query_mask=None, key_mask=None, *, epsilon):
    """The second: softmax attention with a bias for each key."""
    q, k, v = clean(q, query_mask), clean(k, key_mask), clean(v, key_mask)
    valid = valid_tokens(q[..., :, :1] + k[..., None, :, 0], query_mask, key_mask)
    return plan_times_values(q, k, v, key_dual.masked_fill(~valid[1], 0), epsilon, valid)


@computed_in_float32
def sinkhorn_attention(q, k, v, query_mask=None, key_mask=None, *, n_iter, epsilon):
    q, k, v = clean(q, query_mask), clean(k, key_mask), clean(v, key_mask)
    S = attention_scores(q, k)
    _, g = sinkhorn(S, None, query_mask, key_mask, n_iter=n_iter, epsilon=epsilon)
    return plan_times_values(q, k, v, g, epsilon, valid_tokens(S, query_mask, key_mask))


def softmax_attention(q, k, v, query_mask=None, key_mask=None):
    return sinkhorn_attention(q, k, v, query_mask, key_mask, n_iter=0, epsilon=1.0)


@computed_in_float32
def asap_attention(
    q, k, v, directions, weights, basis=None, query_mask=None, key_mask=None, *, cumulants, epsilon, refine
):
    q, k, v = clean(q, query_mask), clean(k, key_mask), clean(v, key_mask)
    S = attention_scores(q, k)
    f = amortized_query_dual(q, k, directions, weights, basis, query_mask, key_mask, cumulants=cumulants)
    valid = valid_tokens(S, query_mask, key_mask)
    f, _ = iterate(S, f, refine, epsilon, valid)
    return plan_times_values(q, k, v, key_update(S, f, epsilon, valid), epsilon, valid)


@computed_in_float32
def sliced_attention(
    q, k, v, directions=None, query_mask=None, key_mask=None, *, temperature, inverse_temperature, hard
):
    scale = 1 / math.sqrt(q.shape[-1])
    q, k, v = scale * clean(q, query_mask), scale * clean(k, key_mask), clean(v, key_mask)
    valid = valid_tokens(q[..., :, :1] + k[..., None, :, 0], query_mask, key_mask)
    sorts = []
    for z, mask in zip((q, k), valid, strict=True):
        x = (z if directions is None else z @ directions).mT  # (..., L, n)
        sorts.append(soft_sort(x, mask[..., None, :].expand(x.shape), temperature, hard))
    n, m = (mask.sum(-1)[..., None, None].clamp(min=1).to(q.dtype) for mask in valid)
    r, s = torch.arange(q.shape[-2], dtype=q.dtype)[:, None], torch.arange(k.shape[-2], dtype=q.dtype)
    shared = torch.minimum((r + 1) / n, (s + 1) / m) - torch.maximum(r / n, s / m)
    plans = sorts[0].mT @ (n * shared.clamp(min=0))[..., None, :, :] @ sorts[1]  # (..., L, n, m)
    pairs = valid[0][..., :, None] & valid[1][..., None, :]
    gap = (q[..., :, None, :] - k[..., None, :, :]).pow(2).sum(-1)
    apart = pairs & (gap > 0)  # the gradient of a distance of zero is zero
    distance = gap.masked_fill(~apart, 1).sqrt().masked_fill(~apart, 0)
    cost = (distance[..., None, :, :] * plans).sum((-2, -1))
    share = torch.softmax(-inverse_temperature * cost, -1)
    return (share[..., None, None] * plans).sum(-3) @ v


def soft_sort(x, valid, temperature, hard):
    """U (..., ranks, tokens)."""
    order, _ = ascending(x, valid)
    ranked = valid.gather(-1, order)[..., :, None]  # valid tokens hold the first ranks
    if hard:
        return functional.one_hot(order, x.shape[-1]).to(x.dtype).masked_fill(~ranked, 0)
    exponent = -((x[..., None, :] - x.gather(-1, order)[..., :, None]) ** 2) / temperature
    U = torch.softmax(exponent.masked_fill(~valid[..., None, :], torch.finfo(x.dtype).min / 4), -1)
    return U.masked_fill(~(ranked & valid[..., None, :]), 0)


# --------------------------------------------------------------------------------------------- calibration and layer


@computed_in_float32
def kl_loss(scores, query_dual, teacher_columns, query_mask=None, key_mask=None, *, epsilon):
    S, valid = without_padding(scores, query_mask, key_mask)
    f, g = iterate(S, query_dual, 1, epsilon, valid)
    return -(f.sum(-1) + (teacher_columns * g).sum(-1)) / (epsilon * valid[0].sum(-1).clamp(min=1))


@computed_in_float32
def dual_loss(scores, query_dual, query_mask=None, key_mask=None, *, epsilon):
    S, valid = without_padding(scores, query_mask, key_mask)
    f_hat = query_dual.masked_fill(~valid[0], 0)
    g = key_update(S, f_hat, epsilon, valid)
    mass = column_mass(S, valid)[..., 0]
    return -(f_hat.sum(-1) + mass * g.sum(-1)) / valid[0].sum(-1).clamp(min=1)


def fit_amortizer(q, k, directions, *, n_iter, epsilon, ridge, cumulants):
    features = dual_features(q, k, directions, cumulants=cumulants)  # (batch, H, F, n)
    target, _ = sinkhorn(attention_scores(q, k), n_iter=n_iter - 1, epsilon=epsilon)
    target = target - target.mean(-1, keepdim=True)
    phi, t = features.permute(1, 2, 0, 3).flatten(2), target.transpose(0, 1).flatten(1)  # tokens last
    gram = phi @ phi.mT
    penalised = gram + ridge * torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
    w = torch.linalg.solve(penalised, (phi @ t[..., None])[..., 0])
    residual = t - (w[:, None, :] @ phi)[:, 0]
    return w, 1 - residual.pow(2).sum(-1) / t.pow(2).sum(-1)


class AsapAttention(nn.Module):
    """Multi-head self-attention by ASAP: projections are trained, the amortizer is given.

    x (B, n, width), mask (B, n) -> (B, n, width).
    """

    def __init__(self, width, directions, weights, basis=None, *, cumulants=True, epsilon=1.0, refine=0):
        super().__init__()
        self.n_heads = weights.shape[0]
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.settings = dict(cumulants=cumulants, epsilon=epsilon, refine=refine)
        for name, x in (("directions", directions), ("weights", weights), ("basis", basis)):
            self.register_buffer(
                name, None if x is None else torch.tensor(np.asarray(x), dtype=torch.get_default_dtype())
            )

    @classmethod
    def load(cls, path, width):
        """Take the amortizer from the .npz that `Amortizer.save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            saved = json.loads(str(file["header"]))["settings"]
            families = {name: f"family{i}" for i, name in enumerate(saved["families"])}
            arrays = {"weights": file["weights"], "directions": file[f"{families['slices']}/directions"]}
            if "quadratic" in families:
                arrays["basis"] = file[f"{families['quadratic']}/basis"]
        cumulants = "cumulants" in families
        return cls(width, **arrays, cumulants=cumulants, epsilon=saved["epsilon"], refine=saved["refine"])

    def forward(self, x, mask=None):
        q, k, v = (z.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        heads_mask = None if mask is None else mask[:, None, :]
        amortizer = self.directions, self.weights, self.basis
        mixed = asap_attention(q, k, v, *amortizer, heads_mask, heads_mask, **self.settings)
        return self.out(mixed.transpose(1, 2).flatten(2))


# ----------------------------------------------------------------------------------------------------- a whole model


def logits(p, images, attend, *, patch, n_heads):
    x = images.unfold(1, patch, patch).unfold(2, patch, patch).flatten(3).flatten(1, 2)
    x = x @ p["embedding/patch/weight"] + p["embedding/patch/bias"]
    x = torch.cat([p["embedding/class_token"].expand(len(x), 1, -1), x], 1) + p["embedding/position"]
    width = x.shape[-1]

    def norm(x, name):
        return functional.layer_norm(x, (width,), p[f"{name}/gain"], p[f"{name}/bias"])

    def affine(x, name):
        return x @ p[f"{name}/weight"] + p[f"{name}/bias"]

    for i in range(sum(name.endswith("norm1/gain") for name in p)):
        b = f"block{i}"
        qkv = affine(norm(x, f"{b}/norm1"), f"{b}/heads/qkv")
        q, k, v = (z.unflatten(-1, (n_heads, -1)).transpose(1, 2) for z in qkv.chunk(3, -1))
        x = x + affine(attend(i, q, k, v).transpose(1, 2).flatten(2), f"{b}/heads/out")
        hidden = functional.gelu(affine(norm(x, f"{b}/norm2"), f"{b}/mlp/up"), approximate="tanh")
        x = x + affine(hidden, f"{b}/mlp/down")
    return affine(norm(x[:, 0], "norm"), "head")


def training_trace(
    images,
    labels,
    learning_rates,
    *,
    image_size,
    patch,
    n_heads,
    n_iter,
    epsilon,
    weight_decay,
    betas,
    adam_epsilon,
    **p,
):
    p = {name: x.clone().requires_grad_() for name, x in p.items()}
    decayed, others = [x for x in p.values() if x.ndim == 2], [x for x in p.values() if x.ndim != 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=tuple(betas), eps=adam_epsilon)
    attend = lambda i, q, k, v: sinkhorn_attention(q, k, v, n_iter=n_iter, epsilon=epsilon)  # noqa: E731
    losses, norms = [], []
    for batch, classes, rate in zip(images, labels, learning_rates.tolist(), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits(p, batch, attend, patch=patch, n_heads=n_heads), classes)
        loss.backward()
        losses.append(loss.detach())
        norms.append(torch.stack([x.grad.pow(2).sum() for x in p.values()]).sum().sqrt())
        optimizer.step()
    return torch.stack(losses), torch.stack(norms)


def compile_model(images, directions, *, image_size, patch, n_heads, n_iter, epsilon, ridge, cumulants, **p):
    recorded = []

    def teacher(i, q, k, v):
        recorded.append((q, k))
        return sinkhorn_attention(q, k, v, n_iter=n_iter, epsilon=epsilon)

    before = logits(p, images, teacher, patch=patch, n_heads=n_heads)
    settings = dict(n_iter=n_iter, epsilon=epsilon, ridge=ridge, cumulants=cumulants)
    weights = [fit_amortizer(q, k, directions, **settings)[0] for q, k in recorded]

    def compiled(i, q, k, v):
        return asap_attention(q, k, v, directions, weights[i], cumulants=cumulants, epsilon=epsilon, refine=0)

    return torch.stack(weights), before, logits(p, images, compiled, patch=patch, n_heads=n_heads)
