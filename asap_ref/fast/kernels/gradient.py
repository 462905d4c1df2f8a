"""Softmax and Sinkhorn backwards, nothing of size n x m kept: gradient.cu beside `method.sinkhorn.sinkhorn_vjp`.

    forward      f_t and g_t kept, (2T + 1) half steps of O(n + m) numbers
    dv           the transposed plan times d_out: attend with the sides exchanged, from duals that are known
    df_T, dg_T   row and column sums of P * (d_out vᵀ) / epsilon, as those of d_out * out and v * dv
    df, dg       pull, one launch a half step, from the last to the first
    dq, dk       gradient, one launch each

2T + 2 launches forward, 2T + 3 backward and a few passes over narrow arrays. Each of the tiles of the scores is formed
again in every one of them: O(T n m d) time, where the array form takes O(T n m) but n x m numbers of memory.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p), duals (T + 1, ..., n) and (T + 1, ..., m).
"""

from __future__ import annotations

from asap_ref.fast.kernels.attention import pays_for_sinkhorn
from asap_ref.fast.kernels.build import BACKWARD
from asap_ref.fast.kernels.launch import Problems, contiguous


def sinkhorn_attention_vjp(q, k, v, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Attention and ``vjp(d_out) -> (dq, dk, dv)``, or None where the array form is to be taken; T = 0 is softmax."""
    if not pays_for_sinkhorn(q, k, n_iter):
        return None
    q, k, v = map(contiguous, (q, k, v))  # copied once for all launches, if at all
    problems = Problems(q, k, v, query_mask, key_mask)
    again = Problems(q, k, v, query_mask, key_mask, parts=BACKWARD)
    if not (problems.fit and again.fit):
        return None
    xp, leading, (n, m) = problems.xp, problems.leading, (problems.n, problems.m)
    with q.device:  # which may not be the current one
        f = problems.empty(n_iter + 1, *leading, n)
        g = xp.zeros((n_iter + 1, *leading, m), dtype=f.dtype, device=q.device)  # g_0 = 0
    problems.query_dual(None, epsilon, out=f[0])
    for t in range(1, n_iter + 1):
        problems.key_dual(f[t - 1], epsilon, out=g[t])
        problems.query_dual(g[t], epsilon, out=f[t])
    out = problems.attend(g[n_iter], epsilon)

    def vjp(d_out):
        with q.device:
            return gradients(contiguous(d_out))

    def gradients(d_out):
        across = Problems(k, q, d_out, key_mask, query_mask)
        dv = across.attend(f[n_iter], epsilon, own=g[n_iter])
        df, dg = problems.empty(*f.shape), problems.empty(*g.shape)
        df[n_iter] = xp.sum(d_out * out, axis=-1) / epsilon
        of_plan = xp.sum(v * dv, axis=-1) / epsilon
        for t in range(n_iter, 0, -1):
            again.pull("key", g[t], f[t], df[t], epsilon, begin=of_plan if t == n_iter else None, out=dg[t])
            again.pull("query", f[t - 1], g[t], dg[t], epsilon, out=df[t - 1])
        dq = again.gradient("query", d_out, f, g, df, dg, epsilon)
        dk = again.gradient("key", d_out, g, f, dg, df, epsilon)
        return dq, dk, dv

    return out, vjp
