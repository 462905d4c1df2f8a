"""ASAP attention in JAX, written from the oracle's README alone: every function is jitted and differentiable.

    JAX_ENABLE_X64=1 asap-ref oracle check tests/oracle/examples/jax_layer.py

Nothing here comes from asap_ref. Each formula is written for one problem, with masks; `over` maps it over batch
and heads. To put into a model: `load_amortizer`, `init_layer` and `asap_layer`.
"""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def to_array(x, dtype):
    """What the oracle passes: NumPy to JAX."""
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("float64 needs JAX_ENABLE_X64=1; or check with --dtype float32")
    return jnp.asarray(x, dtype=dtype if x.dtype.kind == "f" else None)


def over(signature, *excluded):
    """Map a function of one problem over leading axes; half precision computes in float32."""

    def decorate(function):
        mapped = jnp.vectorize(function, signature=signature, excluded=excluded)

        def wrapped(*args):
            dtype = args[0].dtype
            if dtype.itemsize == 2:
                args = [x.astype(jnp.float32) if getattr(x, "dtype", None) == dtype else x for x in args]
            found = mapped(*args)
            return jax.tree.map(lambda x: x.astype(dtype), found) if dtype.itemsize == 2 else found

        return wrapped

    return decorate


def mask_of(x, mask, axis=-2):
    """A mask of tokens, all valid without one."""
    return jnp.ones(x.shape[axis], bool) if mask is None else mask


def far(x):
    return jnp.finfo(x.dtype).min / 4


def alive(q_mask, k_mask):
    """Masks of a problem: a side without any token takes the other with it."""
    return q_mask & k_mask.any(), k_mask & q_mask.any()


def without_padding(S, q_mask, k_mask, f=None, g=None):
    """Scores and duals of a problem with padding set to 0, which may hold NaN; masks where both sides have tokens."""
    q_mask, k_mask = alive(q_mask, k_mask)
    S = jnp.where(q_mask[:, None] & k_mask[None, :], S, 0)
    f, g = (None if x is None else jnp.where(mask, x, 0) for x, mask in ((f, q_mask), (g, k_mask)))
    return S, f, g, (q_mask, k_mask)


def count(mask, like):
    return jnp.maximum(mask.sum(), 1).astype(like.dtype)


def centred(x, mask):
    """Rows x (..., n) less their mean over valid tokens, 0 elsewhere."""
    x = jnp.where(mask, x, 0)
    return jnp.where(mask, x - x.sum(-1, keepdims=True) / count(mask, x), 0)


# ------------------------------------------------------------------------------------------------- scores and duals


@jax.jit
def attention_scores(q, k):
    return over("(n,d),(m,d)->(n,m)")(lambda q, k: q @ k.T / math.sqrt(q.shape[-1]))(q, k)


def to_keys(S, f, epsilon, q_mask, k_mask):
    exponent = jnp.where(q_mask[:, None], (S + f[:, None]) / epsilon, far(S))
    g = jnp.log(count(q_mask, S) / count(k_mask, S)) - jax.nn.logsumexp(exponent, axis=0)
    return jnp.where(k_mask, epsilon * g, 0)


def to_queries(S, g, epsilon, q_mask, k_mask):
    exponent = jnp.where(k_mask[None, :], (S + g[None, :]) / epsilon, far(S))
    return jnp.where(q_mask, -epsilon * jax.nn.logsumexp(exponent, axis=1), 0)


def iterations(S, f, n_iter, epsilon, q_mask, k_mask):
    """(f, g) after n_iter iterations from f, for one problem."""

    def step(duals, _):
        g = to_keys(S, duals[0], epsilon, q_mask, k_mask)
        return (to_queries(S, g, epsilon, q_mask, k_mask), g), None

    start = jnp.where(q_mask, f, 0), jnp.zeros_like(S[0])
    return lax.scan(step, start, length=n_iter)[0]


@functools.partial(jax.jit, static_argnames="onto")
def entropic_c_transform(scores, dual, query_mask=None, key_mask=None, *, onto, epsilon):
    known, new = ("n", "m") if onto == "key" else ("m", "n")

    @over(f"(n,m),({known}),(n),(m)->({new})")
    def solve(S, dual, q_mask, k_mask):
        half_step, side = (to_keys, "f") if onto == "key" else (to_queries, "g")
        S, f, g, masks = without_padding(S, q_mask, k_mask, **{side: dual})
        return half_step(S, f if onto == "key" else g, epsilon, *masks)

    return solve(scores, dual, mask_of(scores, query_mask), mask_of(scores, key_mask, -1))


@jax.jit
def two_sided_c_transform(scores, query_dual, query_mask=None, key_mask=None, *, epsilon):
    return sinkhorn(scores, query_dual, query_mask, key_mask, n_iter=1, epsilon=epsilon)


@functools.partial(jax.jit, static_argnames="n_iter")
def sinkhorn(scores, init=None, query_mask=None, key_mask=None, *, n_iter, epsilon):
    def solve(S, q_mask, k_mask, *init):
        S, f, _, masks = without_padding(S, q_mask, k_mask, *init)
        f = f if init else to_queries(S, jnp.zeros_like(S[0]), epsilon, *masks)
        return iterations(S, f, n_iter, epsilon, *masks)

    masks = mask_of(scores, query_mask), mask_of(scores, key_mask, -1)
    if init is None:
        return over("(n,m),(n),(m)->(n),(m)")(solve)(scores, *masks)
    return over("(n,m),(n),(m),(n)->(n),(m)")(solve)(scores, *masks, init)


def plan_of(S, f, g, epsilon, q_mask, k_mask):
    pairs = q_mask[:, None] & k_mask[None, :]
    return jnp.where(pairs, jnp.exp(jnp.where(pairs, ((f[:, None] + g[None, :]) + S) / epsilon, far(S))), 0)


@jax.jit
def transport_plan(scores, query_dual, key_dual, query_mask=None, key_mask=None, *, epsilon):
    @over("(n,m),(n),(m),(n),(m)->(n,m)")
    def solve(S, f, g, q_mask, k_mask):
        S, f, g, masks = without_padding(S, q_mask, k_mask, f, g)
        return plan_of(S, f, g, epsilon, *masks)

    return solve(scores, query_dual, key_dual, mask_of(scores, query_mask), mask_of(scores, key_mask, -1))


@jax.jit
def marginal_error(plan, query_mask=None, key_mask=None):
    @over("(n,m),(n),(m)->(),()")
    def solve(P, q_mask, k_mask):
        q_mask, k_mask = alive(q_mask, k_mask)
        columns = jnp.abs(P.sum(0) - count(q_mask, P) / count(k_mask, P))
        return jnp.where(q_mask, jnp.abs(P.sum(1) - 1), 0).max(), jnp.where(k_mask, columns, 0).max()

    return solve(plan, mask_of(plan, query_mask), mask_of(plan, key_mask, -1))


# ---------------------------------------------------------------------------------------------- slices and features


def potentials(x, y, a, b, cost):
    """(phi, psi) of one pair of samples with weights a, b >= 0; samples of weight 0 are padding, and come out as 0."""
    a, b = a * (b.sum() > 0), b * (a.sum() > 0)
    x, y = jnp.where(a > 0, x, 0), jnp.where(b > 0, y, 0)
    order, y_order = (jnp.argsort(jnp.where(w > 0, lax.stop_gradient(z), jnp.inf)) for z, w in ((x, a), (y, b)))
    xs, ys = x[order], y[y_order]
    A, B = jnp.cumsum(a[order]) * b.sum(), jnp.cumsum(b[y_order]) * a.sum()
    slack = 8 * jnp.finfo(x.dtype).eps * A[-1]
    last = jnp.maximum((b > 0).sum() - 1, 0)
    left = jnp.minimum(jnp.searchsorted(B, A - slack), last)
    right = jnp.minimum(jnp.searchsorted(B, A + slack, side="right"), last)
    steps = jnp.where(jnp.arange(1, len(x)) < (a > 0).sum(), jnp.diff(xs), 0)
    walk = -jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(((ys[left] + ys[right]) / 2)[:-1] * steps)])
    phi = walk[jnp.argsort(order)]
    if cost == "sqeuclidean":
        phi, pairs = phi + x * x / 2, (x[:, None] - y[None, :]) ** 2 / 2
    else:
        pairs = -x[:, None] * y[None, :]
    gap = jnp.where(a[:, None] > 0, pairs - phi[:, None], -far(x))
    # not gap.min(0): its gradient asks which entries equal the minimum, and XLA may compute them twice, a bit apart
    psi = jnp.take_along_axis(gap, gap.argmin(0)[None, :], 0)[0]
    mean = jnp.where(a > 0, a * phi, 0).sum() / jnp.where(a.sum() > 0, a.sum(), 1)
    return jnp.where(a > 0, phi - mean, 0), jnp.where(b > 0, psi + mean, 0)


@functools.partial(jax.jit, static_argnames="cost")
def kantorovich_potentials_1d(x, y, x_weights=None, y_weights=None, x_mask=None, y_mask=None, *, cost):
    a, b = (
        jnp.where(mask_of(z, mask, -1), jnp.ones_like(z) if weights is None else weights, 0)
        for z, weights, mask in ((x, x_weights, x_mask), (y, y_weights, y_mask))
    )
    return over("(n),(m),(n),(m)->(n),(m)", 4)(potentials)(x, y, a, b, cost)


def slices_of(q, k, theta, q_mask, k_mask):
    """(phi, psi), each a slice a row, for one problem."""
    scale = q.shape[-1] ** -0.25
    weights = q_mask.astype(q.dtype), k_mask.astype(q.dtype)
    one = lambda t: potentials(scale * (q @ t), scale * (k @ t), *weights, "bilinear")  # noqa: E731
    phi, psi = jax.vmap(one, in_axes=1)(theta)
    return centred(phi, q_mask), centred(psi, k_mask)


def cumulants_of(q, k, q_mask, k_mask):
    u, mean = q / math.sqrt(q.shape[-1]), k.sum(0) / count(k_mask, k)
    spread = jnp.where(k_mask[:, None], k - mean, 0)
    return [u @ mean, (u * u).sum(-1), ((u @ spread.T) ** 2).sum(-1) / count(k_mask, k)]


def quadratic_of(q, k, basis, q_mask, k_mask):
    u, w = (q.shape[-1] ** -0.25 * (z @ basis).T for z in (q, k.sum(0) / count(k_mask, k)))
    return [*u, *(u[a] * u[b] for a, b in upper(u)), *(u[a] * w_b for w_b in w for a in range(len(u)))]


def moments_of(q, k, basis, q_mask, k_mask):
    u, w = (q.shape[-1] ** -0.25 * (z @ basis).T for z in (q, k))
    means = [z.sum(1) / count(mask, z) for z, mask in ((u, q_mask), (w, k_mask))]
    spreads = [
        jnp.where(mask, z - m[:, None], 0) for z, m, mask in zip((u, w), means, (q_mask, k_mask), strict=True)
    ]
    Cu, Cw = (z @ z.T / count(mask, z) for z, mask in zip(spreads, (q_mask, k_mask), strict=True))
    rows = [u_a * s for s in (*means[0], *jnp.diag(Cw), *jnp.diag(Cu)) for u_a in u]
    return rows + [u[a] * u[b] * C[a, b] for C in (Cw, Cu) for a, b in upper(u)]


def upper(u):
    return [(a, b) for a in range(len(u)) for b in range(a, len(u))]


def features_of(q, k, theta, basis, q_mask, k_mask, cumulants):
    """(F, n) of one problem."""
    q_mask, k_mask = alive(q_mask, k_mask)
    q, k = jnp.where(q_mask[:, None], q, 0), jnp.where(k_mask[:, None], k, 0)
    rows = [*slices_of(q, k, theta, q_mask, k_mask)[0]]
    rows += cumulants_of(q, k, q_mask, k_mask) if cumulants else []
    rows += quadratic_of(q, k, basis, q_mask, k_mask) if basis is not None else []
    return centred(jnp.stack(rows), q_mask)


def family(rows_of):
    """A family of features by itself, over leading axes."""

    def solve(q, k, q_mask, k_mask, basis=None):
        q_mask, k_mask = alive(q_mask, k_mask)
        q, k = jnp.where(q_mask[:, None], q, 0), jnp.where(k_mask[:, None], k, 0)
        arrays = [] if basis is None else [basis]
        return centred(jnp.stack(rows_of(q, k, *arrays, q_mask, k_mask)), q_mask)

    @jax.jit
    def features(q, k, basis=None, query_mask=None, key_mask=None):
        mapped = with_basis(solve, basis, "(n,d),(m,d),(n),(m)->(f,n)")
        return mapped(q, k, mask_of(q, query_mask), mask_of(k, key_mask))

    return features


cumulant_features, quadratic_features, moment_features = map(family, (cumulants_of, quadratic_of, moments_of))


def with_basis(function, basis, signature):
    """Map over leading axes a function that takes the basis last, if there is one."""
    if basis is None:
        return over(signature)(lambda *arrays: function(*arrays, None))
    inputs, outputs = signature.split("->")
    return lambda *arrays: over(f"{inputs},(d,r)->{outputs}")(function)(*arrays, basis)


@jax.jit
def sliced_potentials(q, k, directions, query_mask=None, key_mask=None):
    @over("(n,d),(m,d),(d,l),(n),(m)->(l,n),(l,m)")
    def solve(q, k, theta, q_mask, k_mask):
        q_mask, k_mask = alive(q_mask, k_mask)
        return slices_of(jnp.where(q_mask[:, None], q, 0), jnp.where(k_mask[:, None], k, 0), theta, q_mask, k_mask)

    return solve(q, k, directions, mask_of(q, query_mask), mask_of(k, key_mask))


@functools.partial(jax.jit, static_argnames="cumulants")
def dual_features(q, k, directions, basis=None, query_mask=None, key_mask=None, *, cumulants):
    def solve(q, k, theta, q_mask, k_mask, basis):
        return features_of(q, k, theta, basis, q_mask, k_mask, cumulants)

    mapped = with_basis(solve, basis, "(n,d),(m,d),(d,l),(n),(m)->(f,n)")
    return mapped(q, k, directions, mask_of(q, query_mask), mask_of(k, key_mask))


@functools.partial(jax.jit, static_argnames="cumulants")
def amortized_query_dual(q, k, directions, weights, basis=None, query_mask=None, key_mask=None, *, cumulants):
    def solve(q, k, theta, w, q_mask, k_mask, basis):
        return w @ features_of(q, k, theta, basis, q_mask, k_mask, cumulants)

    mapped = with_basis(solve, basis, "(n,d),(m,d),(d,l),(f),(n),(m)->(n)")
    return mapped(q, k, directions, weights, mask_of(q, query_mask), mask_of(k, key_mask))


def slice_directions(dim, n_slices, kind, seed):
    keys = jax.random.split(jax.random.key(seed), -(-n_slices // dim))
    blocks = [jax.random.normal(key, (dim, dim)) for key in keys]
    if kind == "orthogonal":
        blocks = [jnp.linalg.qr(block)[0] for block in blocks]
    return jnp.concatenate([block / jnp.linalg.norm(block, axis=0) for block in blocks], axis=1)[:, :n_slices]


# -------------------------------------------------------------------------------------------------------- attentions


@jax.jit
def lse(q, k, query_dual, query_mask=None, key_mask=None, *, epsilon):
    """The first building block of a kernel: the c-transform onto keys without the mass n'/m'."""

    @over("(n,d),(m,d),(n),(n),(m)->(m)")
    def solve(q, k, f, *masks):
        q_mask, k_mask = alive(*masks)
        q, k, f = jnp.where(q_mask[:, None], q, 0), jnp.where(k_mask[:, None], k, 0), jnp.where(q_mask, f, 0)
        S = q @ k.T / math.sqrt(q.shape[-1])
        return to_queries(S.T, f, epsilon, k_mask, q_mask)

    return solve(q, k, query_dual, mask_of(q, query_mask), mask_of(k, key_mask))


@jax.jit
def attend(q, k, v, key_dual, query_mask=None, key_mask=None, *, epsilon):
    """The second: softmax attention with a bias for each key."""

    @over("(n,d),(m,d),(m,p),(m),(n),(m)->(n,p)")
    def solve(q, k, v, g, *masks):
        q_mask, k_mask = alive(*masks)
        q, k, v = (jnp.where(mask[:, None], z, 0) for z, mask in ((q, q_mask), (k, k_mask), (v, k_mask)))
        S = q @ k.T / math.sqrt(q.shape[-1])
        logits = jnp.where(k_mask[None, :], (S + jnp.where(k_mask, g, 0)[None, :]) / epsilon, far(S))
        return jnp.where(q_mask[:, None], jax.nn.softmax(logits, axis=1) @ v, 0)

    return solve(q, k, v, key_dual, mask_of(q, query_mask), mask_of(k, key_mask))


@functools.partial(jax.jit, static_argnames="n_iter")
def sinkhorn_attention(q, k, v, query_mask=None, key_mask=None, *, n_iter, epsilon):
    @over("(n,d),(m,d),(m,p),(n),(m)->(n,p)")
    def solve(q, k, v, q_mask, k_mask):
        masks = alive(q_mask, k_mask)
        q, k, v = (jnp.where(mask[:, None], z, 0) for z, mask in zip((q, k, v), (*masks, masks[1]), strict=True))
        S = q @ k.T / math.sqrt(q.shape[-1])
        f = to_queries(S, jnp.zeros_like(S[0]), epsilon, *masks)
        return plan_of(S, *iterations(S, f, n_iter, epsilon, *masks), epsilon, *masks) @ v

    return solve(q, k, v, mask_of(q, query_mask), mask_of(k, key_mask))


@jax.jit
def softmax_attention(q, k, v, query_mask=None, key_mask=None):
    return sinkhorn_attention(q, k, v, query_mask, key_mask, n_iter=0, epsilon=1.0)


@functools.partial(jax.jit, static_argnames=("cumulants", "refine"))
def asap_attention(
    q, k, v, directions, weights, basis=None, query_mask=None, key_mask=None, *, cumulants, epsilon, refine
):
    def solve(q, k, v, theta, w, q_mask, k_mask, basis):
        masks = alive(q_mask, k_mask)
        q, k, v = (jnp.where(mask[:, None], z, 0) for z, mask in zip((q, k, v), (*masks, masks[1]), strict=True))
        f = w @ features_of(q, k, theta, basis, *masks, cumulants)
        S = q @ k.T / math.sqrt(q.shape[-1])
        return plan_of(S, *iterations(S, f, 1 + refine, epsilon, *masks), epsilon, *masks) @ v

    mapped = with_basis(solve, basis, "(n,d),(m,d),(m,p),(d,l),(f),(n),(m)->(n,p)")
    return mapped(q, k, v, directions, weights, mask_of(q, query_mask), mask_of(k, key_mask))


@functools.partial(jax.jit, static_argnames="hard")
def sliced_attention(
    q, k, v, directions=None, query_mask=None, key_mask=None, *, temperature, inverse_temperature, hard
):
    theta = jnp.eye(q.shape[-1], dtype=q.dtype) if directions is None else directions

    @over("(n,d),(m,d),(m,p),(d,l),(n),(m)->(n,p)")
    def solve(q, k, v, theta, q_mask, k_mask):
        masks = alive(q_mask, k_mask)
        q, k, v = (jnp.where(mask[:, None], z, 0) for z, mask in zip((q, k, v), (*masks, masks[1]), strict=True))
        q, k = q / math.sqrt(q.shape[-1]), k / math.sqrt(q.shape[-1])
        n, m = count(masks[0], q), count(masks[1], q)
        r, s = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None, :]
        W = n * jnp.maximum(jnp.minimum((r + 1) / n, (s + 1) / m) - jnp.maximum(r / n, s / m), 0)

        def of_slice(t):
            A, B = (ranks_by_tokens(z @ t, mask, temperature, hard) for z, mask in zip((q, k), masks, strict=True))
            return A.T @ W.astype(q.dtype) @ B

        plans = jax.vmap(of_slice, in_axes=1)(theta)
        pairs = masks[0][:, None] & masks[1][None, :]
        gap = ((q[:, None] - k[None, :]) ** 2).sum(-1)
        apart = pairs & (gap > 0)  # the gradient of a distance of zero is zero
        distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, gap, 1)), 0)
        share = jax.nn.softmax(-inverse_temperature * (distance * plans).sum((1, 2)))
        return jnp.tensordot(share, plans, 1) @ v

    return solve(q, k, v, theta, mask_of(q, query_mask), mask_of(k, key_mask))


def ranks_by_tokens(x, mask, temperature, hard):
    order = jnp.argsort(jnp.where(mask, x, jnp.inf), stable=True)
    if hard:
        U = jax.nn.one_hot(order, len(x), dtype=x.dtype)
    else:
        U = jax.nn.softmax(jnp.where(mask, -((x[None, :] - x[order][:, None]) ** 2) / temperature, far(x)), axis=1)
    return jnp.where(mask[order][:, None] & mask[None, :], U, 0)


@jax.jit
def kl_loss(scores, query_dual, teacher_columns, query_mask=None, key_mask=None, *, epsilon):
    @over("(n,m),(n),(m),(n),(m)->()")
    def solve(S, f, columns, *masks):
        S, f, _, masks = without_padding(S, *masks, f)
        f, g = iterations(S, f, 1, epsilon, *masks)
        return -(f.sum() + columns @ g) / (epsilon * count(masks[0], S))

    masks = mask_of(scores, query_mask), mask_of(scores, key_mask, -1)
    return solve(scores, query_dual, teacher_columns, *masks)


@jax.jit
def dual_loss(scores, query_dual, query_mask=None, key_mask=None, *, epsilon):
    @over("(n,m),(n),(n),(m)->()")
    def solve(S, f, *masks):
        S, f, _, (q_mask, k_mask) = without_padding(S, *masks, f)
        g = to_keys(S, f, epsilon, q_mask, k_mask)
        return -f.sum() / count(q_mask, S) - g.sum() / count(k_mask, S)

    return solve(scores, query_dual, mask_of(scores, query_mask), mask_of(scores, key_mask, -1))


@functools.partial(jax.jit, static_argnames=("n_iter", "cumulants"))
def fit_amortizer(q, k, directions, *, n_iter, epsilon, ridge, cumulants):
    phi = dual_features(q, k, directions, cumulants=cumulants)  # (batch, H, F, n)
    f, _ = sinkhorn(attention_scores(q, k), n_iter=n_iter - 1, epsilon=epsilon)
    f = f - f.mean(-1, keepdims=True)
    gram, cross = jnp.einsum("bhfn,bhgn->hfg", phi, phi), jnp.einsum("bhfn,bhn->hf", phi, f)
    penalty = ridge * jax.vmap(lambda g: jnp.diag(jnp.diag(g)))(gram)
    w = jnp.linalg.solve(gram + penalty, cross[..., None])[..., 0]
    residual = f - jnp.einsum("hf,bhfn->bhn", w, phi)
    return w, 1 - (residual**2).sum((0, 2)) / (f**2).sum((0, 2))


def load_amortizer(path):
    """(arrays, settings) of the .npz that `Amortizer.save` wrote: what `asap_layer` takes besides its parameters."""
    with np.load(path, allow_pickle=False) as file:
        saved = json.loads(str(file["header"]))["settings"]
        families = {name: f"family{i}" for i, name in enumerate(saved["families"])}
        arrays = {"directions": file[f"{families['slices']}/directions"], "weights": file["weights"]}
        if "quadratic" in families:
            arrays["basis"] = file[f"{families['quadratic']}/basis"]
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    return arrays, {"cumulants": "cumulants" in families, "epsilon": saved["epsilon"], "refine": saved["refine"]}


def init_layer(key, width):
    """Parameters of `asap_layer`: the projections of a multi-head attention."""
    make = lambda key, n: {"weight": jax.random.normal(key, (width, n)) * width**-0.5, "bias": jnp.zeros(n)}  # noqa: E731
    keys = jax.random.split(key)
    return {"qkv": make(keys[0], 3 * width), "out": make(keys[1], width)}


def asap_layer(params, x, mask=None, *, directions, weights, basis=None, **settings):
    """Multi-head self-attention by ASAP: params are trained, the amortizer is given.

    x (B, n, width), mask (B, n) -> (B, n, width).

        arrays, settings = load_amortizer("amortizer.npz")
        layer = functools.partial(asap_layer, **arrays, **settings)
        params = init_layer(jax.random.key(0), width)
        y = jax.jit(layer)(params, x)
    """
    affine = lambda x, name: x @ params[name]["weight"] + params[name]["bias"]  # noqa: E731
    qkv = affine(x, "qkv").reshape(*x.shape[:2], 3, len(weights), -1)
    q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))  # (B, H, n, d) each
    heads_mask = None if mask is None else mask[:, None, :]
    mixed = asap_attention(q, k, v, directions, weights, basis, heads_mask, heads_mask, **settings)
    return affine(mixed.swapaxes(1, 2).reshape(x.shape), "out")


# ----------------------------------------------------------------------------------------------------- a whole model


def logits(p, images, attend, patch, n_heads):
    B, size, _ = images.shape
    x = images.reshape(B, size // patch, patch, size // patch, patch).swapaxes(2, 3).reshape(B, -1, patch * patch)
    affine = lambda x, name: x @ p[f"{name}/weight"] + p[f"{name}/bias"]  # noqa: E731

    def norm(x, name):
        z = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return z * p[f"{name}/gain"] + p[f"{name}/bias"]

    x = affine(x, "embedding/patch")
    first = jnp.broadcast_to(p["embedding/class_token"], (B, 1, x.shape[-1]))
    x = jnp.concatenate([first, x], 1) + p["embedding/position"]
    for i in range(sum(name.endswith("norm1/gain") for name in p)):
        b = f"block{i}"
        qkv = affine(norm(x, f"{b}/norm1"), f"{b}/heads/qkv").reshape(B, x.shape[1], 3, n_heads, -1)
        mixed = attend(i, *jnp.moveaxis(qkv, (2, 3), (0, 2)))  # three of (B, H, n, d)
        x = x + affine(mixed.swapaxes(1, 2).reshape(x.shape), f"{b}/heads/out")
        x = x + affine(
            jax.nn.gelu(affine(norm(x, f"{b}/norm2"), f"{b}/mlp/up"), approximate=True), f"{b}/mlp/down"
        )
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
    b1, b2 = betas
    attend = lambda i, q, k, v: sinkhorn_attention(q, k, v, n_iter=n_iter, epsilon=epsilon)  # noqa: E731

    def loss_of(p, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(p, x, attend, patch, n_heads)), y[:, None], 1).mean()

    def step(state, batch):
        p, m, s, t = state
        x, y, rate = batch
        loss, g = jax.value_and_grad(loss_of)(p, x, y)
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
        s = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g * g, s, g)

        def update(p, m, s):
            p = p * (1 - rate * weight_decay) if p.ndim == 2 else p
            return p - rate * (m / (1 - b1**t)) / (jnp.sqrt(s / (1 - b2**t)) + adam_epsilon)

        norm = jnp.sqrt(sum((x * x).sum() for x in g.values()))
        return (jax.tree.map(update, p, m, s), m, s, t + 1), (loss, norm)

    zeros = jax.tree.map(jnp.zeros_like, p)
    return lax.scan(step, (p, zeros, zeros, 1), (images, labels, learning_rates))[1]


def compile_model(images, directions, *, image_size, patch, n_heads, n_iter, epsilon, ridge, cumulants, **p):
    weights = []

    def teacher(i, q, k, v):
        settings = dict(n_iter=n_iter, epsilon=epsilon)
        weights.append(fit_amortizer(q, k, directions, **settings, ridge=ridge, cumulants=cumulants)[0])
        return sinkhorn_attention(q, k, v, **settings)

    def compiled(i, q, k, v):
        return asap_attention(q, k, v, directions, weights[i], cumulants=cumulants, epsilon=epsilon, refine=0)

    before = logits(p, images, teacher, patch, n_heads)
    return jnp.stack(weights), before, logits(p, images, compiled, patch, n_heads)
