"""Heads and blocks of a Transformer, forward beside backward; the attention is an argument.

    heads = project to q, k, v, attend head by head, project back
    block = x + heads(norm(x)), then x + mlp(norm(x))                   pre-norm

Shapes: B sequences, n tokens, width w, H heads of dimension d = w / H.
"""

from __future__ import annotations

from asap_ref.model.layers import layer_norm, layer_norm_vjp, linear, linear_vjp, mlp, mlp_vjp, named
from asap_ref.support.arrays import array_namespace

# ------------------------------------------------------------------------- attention heads: (B, n, w) -> (B, n, w)


def split_heads(x, n_heads):
    """Cut the width into heads: (B, n, w) -> (B, H, n, d)."""
    xp = array_namespace(x)
    b, n, w = x.shape
    return xp.permute_dims(xp.reshape(x, (b, n, n_heads, w // n_heads)), (0, 2, 1, 3))


def merge_heads(x):
    """Put heads side by side again: (B, H, n, d) -> (B, n, w)."""
    xp = array_namespace(x)
    b, h, n, d = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (b, n, h * d))


def split_qkv(qkv, n_heads):
    """Queries, keys and values of each head: (B, n, 3w) -> three of (B, H, n, d)."""
    w = qkv.shape[-1] // 3
    return [split_heads(qkv[..., i * w : (i + 1) * w], n_heads) for i in range(3)]


def heads(x, params, attention, n_heads, mask):
    """Multi-head self-attention: project to q, k, v, attend head by head, project back."""
    q, k, v = split_qkv(linear(x, **params["qkv"]), n_heads)
    return linear(merge_heads(attention(q, k, v, query_mask=mask, key_mask=mask)), **params["out"])


def heads_vjp(x, params, attention, n_heads, mask):
    """Multi-head self-attention and its VJP, ``vjp(d_out) -> (dx, d_params)``."""
    xp = array_namespace(x)
    qkv, qkv_vjp = linear_vjp(x, **params["qkv"])
    mixed, attention_vjp = attention.vjp(*split_qkv(qkv, n_heads), query_mask=mask, key_mask=mask)
    out, out_vjp = linear_vjp(merge_heads(mixed), **params["out"])

    def vjp(d_out):
        d_merged, *d_out_params = out_vjp(d_out)
        d_qkv = attention_vjp(split_heads(d_merged, n_heads))  # dq, dk, dv
        d_qkv = xp.concat([merge_heads(d) for d in d_qkv], axis=-1)
        dx, *d_qkv_params = qkv_vjp(d_qkv)
        return dx, {"qkv": named(d_qkv_params, "weight", "bias"), "out": named(d_out_params, "weight", "bias")}

    return out, vjp


# ---------------------------------------------------------------------------------- block: (B, n, w) -> (B, n, w)


def block(x, params, attention, n_heads, mask):
    """One pre-norm block: attention, then MLP, each added to what came in."""
    x = x + heads(layer_norm(x, **params["norm1"]), params["heads"], attention, n_heads, mask)
    return x + mlp(layer_norm(x, **params["norm2"]), params["mlp"])


def block_vjp(x, params, attention, n_heads, mask, noise=None):
    """One block and its VJP, ``vjp(d_out) -> (dx, d_params)``: a residual adds its gradient to the branch's.

    Noise, {"heads": ..., "mlp": ...}, multiplies what the two branches write (dropout, in training).
    """
    normed1, norm1_vjp = layer_norm_vjp(x, **params["norm1"])
    mixed, heads_backward = heads_vjp(normed1, params["heads"], attention, n_heads, mask)
    y = x + times(mixed, noise, "heads")
    normed2, norm2_vjp = layer_norm_vjp(y, **params["norm2"])
    changed, mlp_backward = mlp_vjp(normed2, params["mlp"])

    def vjp(d_out):
        d_normed2, d_mlp = mlp_backward(times(d_out, noise, "mlp"))
        dy, *d_norm2 = norm2_vjp(d_normed2)
        dy = dy + d_out
        d_normed1, d_heads = heads_backward(times(dy, noise, "heads"))
        dx, *d_norm1 = norm1_vjp(d_normed1)
        return dx + dy, {
            "norm1": named(d_norm1, "gain", "bias"),
            "heads": d_heads,
            "norm2": named(d_norm2, "gain", "bias"),
            "mlp": d_mlp,
        }

    return y + times(changed, noise, "mlp"), vjp


def times(x, noise, name):
    """Multiply by the noise of that name, if there is noise."""
    return x if noise is None else x * noise[name]
