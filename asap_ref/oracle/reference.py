"""The package's own operators in the form that the oracle calls: plain arrays in, plain arrays out.

An adapter like any other: ``asap-ref oracle check asap_ref.oracle.reference``. Where an operator takes a pair
of duals or an amortizer, the oracle passes the arrays they are made of.
"""

from __future__ import annotations

import numpy as np

import asap_ref
from asap_ref import (
    Amortizer,
    Cumulants,
    Duals,
    Moments,
    Quadratic,
    Slices,
    SufficientStatistics,
    attention_scores,
    attention_scores_vjp,
    entropic_c_transform,
    entropic_c_transform_vjp,
    kantorovich_potentials_1d,
    kantorovich_potentials_1d_vjp,
    marginal_error,
    sinkhorn,
    sinkhorn_attention,
    sinkhorn_attention_vjp,
    sinkhorn_vjp,
    slice_directions,
    sliced_attention,
    sliced_attention_vjp,
    sliced_potentials,
    sliced_potentials_vjp,
    softmax_attention,
    softmax_attention_vjp,
    two_sided_c_transform,
    two_sided_c_transform_vjp,
)
from asap_ref.calibration.objectives import dual_loss_and_gradient, kl_loss_and_gradient
from asap_ref.model.architecture import Architecture
from asap_ref.model.layers import cross_entropy_vjp
from asap_ref.model.mechanism import Attention
from asap_ref.model.optimiser import adamw, initial_moments
from asap_ref.model.recording import record
from asap_ref.model.transformer import Transformer, transformer_vjp
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import keep_tokens
from asap_ref.support.trees import leaves, unflatten

__all__ = [
    "amortized_query_dual",
    "amortized_query_dual_vjp",
    "asap_attention",
    "asap_attention_vjp",
    "attend",
    "attend_vjp",
    "attention_scores",
    "attention_scores_vjp",
    "compile_model",
    "cumulant_features",
    "cumulant_features_vjp",
    "dual_features",
    "dual_features_vjp",
    "dual_loss",
    "dual_loss_vjp",
    "entropic_c_transform",
    "entropic_c_transform_vjp",
    "fit_amortizer",
    "kantorovich_potentials_1d",
    "kantorovich_potentials_1d_vjp",
    "kl_loss",
    "kl_loss_vjp",
    "lse",
    "lse_vjp",
    "marginal_error",
    "moment_features",
    "moment_features_vjp",
    "quadratic_features",
    "quadratic_features_vjp",
    "sinkhorn",
    "sinkhorn_attention",
    "sinkhorn_attention_vjp",
    "sinkhorn_vjp",
    "slice_directions",
    "sliced_attention",
    "sliced_attention_vjp",
    "sliced_potentials",
    "sliced_potentials_vjp",
    "softmax_attention",
    "softmax_attention_vjp",
    "training_trace",
    "transport_plan",
    "transport_plan_vjp",
    "two_sided_c_transform",
    "two_sided_c_transform_vjp",
]


def transport_plan(scores, query_dual, key_dual, **settings):
    """(..., n, m), (..., n), (..., m) -> (..., n, m)."""
    return asap_ref.transport_plan(scores, Duals(query_dual, key_dual), **settings)


def transport_plan_vjp(scores, query_dual, key_dual, **settings):
    """Plan and ``vjp(d_plan) -> (d_scores, d_query_dual, d_key_dual)``."""
    plan, vjp = asap_ref.transport_plan_vjp(scores, Duals(query_dual, key_dual), **settings)

    def flat(d_plan):
        d_scores, d_duals = vjp(d_plan)
        return d_scores, *d_duals

    return plan, flat


def families(directions, basis=None, *, cumulants=True):
    """The families of features that version 1 of the oracle has: slices, cumulants, quadratic."""
    found = [Slices(directions)]
    found += [Cumulants()] if cumulants else []
    return [*found, Quadratic(basis)] if basis is not None else found


def dual_features(q, k, directions, basis=None, *, cumulants=True, **masks):
    """(..., n, d), (..., m, d), (d, L), (d, r) -> (..., F, n)."""
    return asap_ref.dual_features(q, k, families(directions, basis, cumulants=cumulants), **masks)


def dual_features_vjp(q, k, directions, basis=None, *, cumulants=True, **masks):
    """Features and ``vjp(d_features) -> (d_q, d_k, d_directions)``; the basis is held fixed."""
    features, vjp = asap_ref.dual_features_vjp(q, k, families(directions, basis, cumulants=cumulants), **masks)
    return features, lambda d_features: _of_directions(*vjp(d_features))


def cumulant_features(q, k, **masks):
    """(..., n, d), (..., m, d) -> (..., 3, n)."""
    return asap_ref.dual_features(q, k, [Cumulants()], **masks)


def cumulant_features_vjp(q, k, **masks):
    """Features and ``vjp(d_features) -> (d_q, d_k)``."""
    return _of_one_family(q, k, Cumulants(), **masks)


def quadratic_features(q, k, basis, **masks):
    """(..., n, d), (..., m, d), (d, r) -> (..., F, n)."""
    return asap_ref.dual_features(q, k, [Quadratic(basis)], **masks)


def quadratic_features_vjp(q, k, basis, **masks):
    """Features and ``vjp(d_features) -> (d_q, d_k)``; the basis is held fixed."""
    return _of_one_family(q, k, Quadratic(basis), **masks)


def moment_features(q, k, basis, **masks):
    """(..., n, d), (..., m, d), (d, r) -> (..., F, n)."""
    return asap_ref.dual_features(q, k, [Moments(basis)], **masks)


def moment_features_vjp(q, k, basis, **masks):
    """Features and ``vjp(d_features) -> (d_q, d_k)``; the basis is held fixed."""
    return _of_one_family(q, k, Moments(basis), **masks)


def _of_one_family(q, k, family, **masks):
    features, vjp = asap_ref.dual_features_vjp(q, k, [family], **masks)
    return features, lambda d_features: vjp(d_features)[:2]


def amortized_query_dual(q, k, directions, weights, basis=None, *, cumulants=True, **masks):
    """(..., H, n, d), (..., H, m, d), (d, L), (H, F) -> (..., H, n)."""
    of = families(directions, basis, cumulants=cumulants)
    return asap_ref.amortized_query_dual(q, k, of, weights, **masks)


def amortized_query_dual_vjp(q, k, directions, weights, basis=None, *, cumulants=True, **masks):
    """Predicted dual and ``vjp(d_dual) -> (d_q, d_k, d_directions, d_weights)``."""
    of = families(directions, basis, cumulants=cumulants)
    dual, vjp = asap_ref.amortized_query_dual_vjp(q, k, of, weights, **masks)
    return dual, lambda d_dual: _of_directions(*vjp(d_dual))


def _of_directions(d_q, d_k, d_families, *others):
    return d_q, d_k, d_families[0]["directions"], *others


def _amortizer(directions, weights, basis=None, *, cumulants=True, **settings):
    return Amortizer(tuple(families(directions, basis, cumulants=cumulants)), weights, **settings)


@operator
def lse(q: "... n d", k: "... m d", query_dual: "... n", *, query_mask=None, key_mask=None, epsilon):
    """(..., n, d), (..., m, d), (..., n) -> (..., m): -epsilon LSE_i((f_i + S_ij) / epsilon), a kernel's first half.

    It is the c-transform onto keys without the mass n'/m'; turned round, that onto queries, which has none.
    """
    return lse_vjp(q, k, query_dual, query_mask=query_mask, key_mask=key_mask, epsilon=epsilon)[0]


@vjp_of(lse)
def lse_vjp(q, k, query_dual, *, query_mask=None, key_mask=None, epsilon):
    """Log-sum-exp onto keys and ``vjp(d_out) -> (dq, dk, d_query_dual)``."""
    q, k = keep_tokens(q, query_mask), keep_tokens(k, key_mask)
    S, scores_vjp = attention_scores_vjp(q, k)
    masks = dict(query_mask=key_mask, key_mask=query_mask)
    out, transform_vjp = entropic_c_transform_vjp(transpose(S), query_dual, onto="query", epsilon=epsilon, **masks)

    def vjp(d_out):
        d_S_turned, d_query_dual = transform_vjp(d_out)
        return *scores_vjp(transpose(d_S_turned)), d_query_dual

    return out, vjp


@operator
def attend(
    q: "... n d", k: "... m d", v: "... m p", key_dual: "... m", *, query_mask=None, key_mask=None, epsilon
):
    """(..., n, d), (..., m, d), (..., m, p), (..., m) -> (..., n, p): softmax_j((S_ij + g_j) / epsilon) v."""
    return attend_vjp(q, k, v, key_dual, query_mask=query_mask, key_mask=key_mask, epsilon=epsilon)[0]


@vjp_of(attend)
def attend_vjp(q, k, v, key_dual, *, query_mask=None, key_mask=None, epsilon):
    """Attention with a bias a key and ``vjp(d_out) -> (dq, dk, dv, d_key_dual)``."""
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    q, k, v = (keep_tokens(x, mask) for x, mask in ((q, query_mask), (k, key_mask), (v, key_mask)))
    S, scores_vjp = attention_scores_vjp(q, k)
    query_dual, transform_vjp = entropic_c_transform_vjp(S, key_dual, onto="query", **settings)
    P, plan_vjp = transport_plan_vjp(S, query_dual, key_dual, **settings)

    def vjp(d_out):
        d_S, d_query_dual, d_key_dual = plan_vjp(d_out @ transpose(v))
        d_S_through, d_key_dual_through = transform_vjp(d_query_dual)
        dq, dk = scores_vjp(d_S + d_S_through)
        return dq, dk, transpose(P) @ d_out, d_key_dual + d_key_dual_through

    return P @ v, vjp


def asap_attention(q, k, v, directions, weights, basis=None, *, query_mask=None, key_mask=None, **settings):
    """(..., H, n, d), (..., H, m, d), (..., H, m, p), (d, L), (H, F) -> (..., H, n, p)."""
    amortizer = _amortizer(directions, weights, basis, **settings)
    return asap_ref.asap_attention(q, k, v, amortizer, query_mask=query_mask, key_mask=key_mask)


def asap_attention_vjp(q, k, v, directions, weights, basis=None, *, query_mask=None, key_mask=None, **settings):
    """ASAP attention and ``vjp(d_out) -> (dq, dk, dv)``; the amortizer is held fixed."""
    amortizer = _amortizer(directions, weights, basis, **settings)
    return asap_ref.asap_attention_vjp(q, k, v, amortizer, query_mask=query_mask, key_mask=key_mask)


def kl_loss(scores, query_dual, teacher_columns, **settings):
    """(..., n, m), (..., n), (..., m) -> (...)."""
    return kl_loss_and_gradient(scores, query_dual, teacher_columns, **settings)[0]


def kl_loss_vjp(scores, query_dual, teacher_columns, **settings):
    """Loss and ``vjp(d_loss) -> (None, d_query_dual)``: it is differentiated in the prediction alone."""
    loss, gradient = kl_loss_and_gradient(scores, query_dual, teacher_columns, **settings)
    return loss, lambda d_loss: (None, d_loss[..., None] * gradient)


def dual_loss(scores, query_dual, **settings):
    """(..., n, m), (..., n) -> (...)."""
    return dual_loss_and_gradient(scores, query_dual, **settings)[0]


def dual_loss_vjp(scores, query_dual, **settings):
    """Loss and ``vjp(d_loss) -> (None, d_query_dual)``."""
    loss, gradient = dual_loss_and_gradient(scores, query_dual, **settings)
    return loss, lambda d_loss: (None, d_loss[..., None] * gradient)


def fit_amortizer(q, k, directions, *, n_iter, epsilon, ridge, cumulants):
    """Weights (H, F) and R² (H,) of ridge regression to the closure-ready dual, on given directions."""
    xp = array_namespace(q, k, directions)
    features = dual_features(q, k, directions, cumulants=cumulants)
    target = sinkhorn(attention_scores(q, k), n_iter=n_iter - 1, epsilon=epsilon).query
    target = target - xp.mean(target, axis=-1, keepdims=True)
    statistics = SufficientStatistics.of(features, target)
    weights = statistics.ridge(ridge)
    # sums are kept in float64; results have the dtype of the inputs
    r_squared = xp.asarray(statistics.r_squared(weights))
    return xp.astype(xp.asarray(weights), q.dtype), xp.astype(r_squared, q.dtype)


# ------------------------------------------------------------------------------------------- the small Transformer


def training_trace(images, labels, learning_rates, *, attention=Attention, on_step=None, **settings):
    """Losses and gradient norms of AdamW steps, one a batch: images (steps, B, height, width), labels (steps, B).

    ``on_step(gradients, parameters)`` is told the gradients of each step and the parameters after it.
    """
    model, settings = _model(settings, attention)
    params, moments = model.params, initial_moments(model.params)
    losses, norms = [], []
    for step, (x, y, rate) in enumerate(zip(images, labels, learning_rates, strict=True), start=1):
        logits, vjp = transformer_vjp(params, x, model.architecture, model.attentions)
        loss, loss_vjp = cross_entropy_vjp(logits, y)
        grads = vjp(*loss_vjp(1.0))
        losses.append(loss)
        norms.append(np.sqrt(sum((g**2).sum() for g in leaves(grads))))
        hyper = dict(weight_decay=settings["weight_decay"], betas=settings["betas"], eps=settings["adam_epsilon"])
        params, moments = adamw(params, grads, moments, step, rate, **hyper)
        if on_step is not None:
            on_step(grads, params)
    return np.asarray(losses), np.asarray(norms)


def compile_model(images, directions, *, ridge, cumulants, attention=Attention, fit=fit_amortizer, **settings):
    """Fit an amortizer a layer on a trained model's own queries and keys, and swap the attention.

    Returns the weights (layers, H, F), and logits (B, classes) of the teacher and of the compiled model.
    """
    model, settings = _model(settings, attention)
    hyper = {key: settings[key] for key in ("n_iter", "epsilon")}
    weights, compiled = [], []
    for q, k, *_ in record(model, images):
        w, _ = fit(q, k, directions, ridge=ridge, cumulants=cumulants, **hyper)
        amortizer = _amortizer(directions, w, cumulants=cumulants, epsilon=settings["epsilon"])
        compiled.append(attention("asap", {"amortizer": amortizer}))
        weights.append(w)
    return np.stack(weights), model(images), model.with_attention(*compiled)(images)


def _model(settings, attention):
    """The Transformer that the parameters among the settings make up, and the other settings."""
    params = {key: value for key, value in settings.items() if "/" in key}
    settings = {key: value for key, value in settings.items() if key not in params}
    params = unflatten(params)
    width = params["embedding"]["class_token"].shape[0]
    architecture = Architecture(
        image=(settings["image_size"], settings["image_size"]),
        patch=settings["patch"],
        width=width,
        n_heads=settings["n_heads"],
        n_layers=sum(name.startswith("block") for name in params),
        mlp_ratio=params["block0"]["mlp"]["up"]["weight"].shape[1] // width,
        n_classes=params["head"]["bias"].shape[0],
    )
    hyper = {key: settings[key] for key in ("n_iter", "epsilon")}
    teacher = attention("sinkhorn", hyper)
    return Transformer(architecture, params, (teacher,) * architecture.n_layers), settings
