"""The same small Transformer in torch, written from the mathematics: a judge that shares no code with ours."""

import math

import torch
from torch.nn import functional

MLP = ("up", "down")


def sinkhorn_plan(S, n_iter, epsilon):
    """Log-domain Sinkhorn from the softmax start, differentiated by autograd through every step."""
    f = -epsilon * torch.logsumexp(S / epsilon, -1)
    g = torch.zeros_like(S[..., 0, :])
    for _ in range(n_iter):
        g = -epsilon * torch.logsumexp((f[..., :, None] + S) / epsilon, -2)  # square: columns sum to 1
        f = -epsilon * torch.logsumexp((g[..., None, :] + S) / epsilon, -1)
    return torch.exp((f[..., :, None] + g[..., None, :] + S) / epsilon)


def forward(params, images, n_heads, patch, n_iter, epsilon):
    """Logits of images; params is a dict of tensors with keys such as "block0/mlp/up/weight"."""
    x = images.unfold(1, patch, patch).unfold(2, patch, patch).reshape(len(images), -1, patch * patch)
    return read(
        params, x @ params["embedding/patch/weight"] + params["embedding/patch/bias"], n_heads, n_iter, epsilon
    )


def forward_text(params, texts, n_heads, n_iter, epsilon):
    """Logits of texts, id lists of any length: each runs alone, so nothing here knows of padding or masks."""
    alone = [params["embedding/word"][ids][None] for ids in texts]
    return torch.cat([read(params, x, n_heads, n_iter, epsilon) for x in alone])


def read(params, x, n_heads, n_iter, epsilon):
    """Logits of embedded tokens (B, n, w): class token and positions, blocks, norm, head."""
    B = len(x)
    x = torch.cat([params["embedding/class_token"].expand(B, 1, -1), x], 1)
    n, w = x.shape[1:]
    if "embedding/position" in params:
        x = x + params["embedding/position"][:n]
    n_layers = sum(key.endswith("norm1/gain") for key in params)
    for i in range(n_layers):
        p = {key.removeprefix(f"block{i}/"): value for key, value in params.items()}
        h = functional.layer_norm(x, (w,), p["norm1/gain"], p["norm1/bias"])
        qkv = h @ p["heads/qkv/weight"] + p["heads/qkv/bias"]
        q, k, v = (part.view(B, n, n_heads, -1).transpose(1, 2) for part in qkv.split(w, -1))
        P = sinkhorn_plan(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), n_iter, epsilon)
        mixed = (P @ v).transpose(1, 2).reshape(B, n, w)
        x = x + mixed @ p["heads/out/weight"] + p["heads/out/bias"]
        h = functional.layer_norm(x, (w,), p["norm2/gain"], p["norm2/bias"])
        h = functional.gelu(h @ p["mlp/up/weight"] + p["mlp/up/bias"], approximate="tanh")
        x = x + h @ p["mlp/down/weight"] + p["mlp/down/bias"]
    x = functional.layer_norm(x[:, 0], (w,), params["norm/gain"], params["norm/bias"])
    return x @ params["head/weight"] + params["head/bias"]


def forward_vectors(params, sequences, n_heads, n_iter, epsilon):
    """Logits of sequences of vectors of any length: each runs alone, so nothing here knows of padding or masks."""
    up, down = (
        (params[f"embedding/vector/{part}/weight"], params[f"embedding/vector/{part}/bias"]) for part in MLP
    )
    embedded = [functional.gelu(x @ up[0] + up[1], approximate="tanh") @ down[0] + down[1] for x in sequences]
    return torch.cat([read(params, x[None], n_heads, n_iter, epsilon) for x in embedded])


def matching_loss(params, first, second, partners, *, n_heads, n_iter, epsilon):
    """Negative log plan of a matcher at the true pairs, a mean; with bins if there are parameters of them."""

    def affine(x, name):
        return x @ params[f"{name}/weight"] + params[f"{name}/bias"]

    def encode(x):
        x = affine(functional.gelu(affine(x, "vector/up"), approximate="tanh"), "vector/down")
        for i in range(sum(key.endswith("norm1/gain") for key in params)):
            p = {key.removeprefix(f"block{i}/"): value for key, value in params.items()}
            w = x.shape[-1]
            qkv = functional.layer_norm(x, (w,), p["norm1/gain"], p["norm1/bias"]) @ p["heads/qkv/weight"]
            q, k, v = (
                part.unflatten(-1, (n_heads, -1)).transpose(1, 2)
                for part in (qkv + p["heads/qkv/bias"]).split(w, -1)
            )
            mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + mixed @ p["heads/out/weight"] + p["heads/out/bias"]
            h = functional.layer_norm(x, (w,), p["norm2/gain"], p["norm2/bias"])
            h = functional.gelu(h @ p["mlp/up/weight"] + p["mlp/up/bias"], approximate="tanh")
            x = x + h @ p["mlp/down/weight"] + p["mlp/down/bias"]
        return functional.layer_norm(x, x.shape[-1:], params["norm/gain"], params["norm/bias"])

    q, k = affine(encode(first), "query"), affine(encode(second), "key")
    (n, m), bins = (q.shape[1], k.shape[1]), "bin/query" in params
    if bins:
        q = torch.cat([q, params["bin/query"].expand(len(q), m, -1)], 1)
        k = torch.cat([k, params["bin/key"].expand(len(k), n, -1)], 1)
    S = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    f = -epsilon * torch.logsumexp(S / epsilon, -1)
    g = torch.zeros_like(S[:, 0])
    mass = math.log(S.shape[1] / S.shape[2])
    for _ in range(n_iter):
        g = epsilon * mass - epsilon * torch.logsumexp((f[..., None] + S) / epsilon, -2)
        f = -epsilon * torch.logsumexp((g[:, None] + S) / epsilon, -1)
    log_plan, terms = (f[..., None] + g[:, None] + S) / epsilon, []
    for b, row in enumerate(partners.tolist()):
        terms += [log_plan[b, i, j] for i, j in enumerate(row) if j >= 0]
        if bins:
            terms += [log_plan[b, i, m:].mean() for i, j in enumerate(row) if j < 0]
            terms += [log_plan[b, n:, j].mean() for j in range(m) if j not in row]
    return -torch.stack(terms).mean()
