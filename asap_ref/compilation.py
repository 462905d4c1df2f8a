"""Train with Sinkhorn, then compile: fit one amortizer a layer and swap the attention. Nothing is retrained.

    record      run the trained model on calibration data and keep the queries and keys of a layer
    fit         regress their closure-ready dual on slice potentials: a weight vector a head
    swap        give the same parameters to ASAP attention
    fidelity    compare the two on other data, layer by layer and head by head

Layers are calibrated on the activations of the trained model, or in order, each on what the compiled layers below
produce.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from asap_ref.arrays import array_namespace, to_numpy
from asap_ref.calibration import fit_amortizer
from asap_ref.contracts import check_choice
from asap_ref.mechanism import Attention
from asap_ref.sinkhorn import sinkhorn
from asap_ref.sources import Mapped
from asap_ref.transport import attention_scores, marginal_error, transport_plan

# ------------------------------------------------------------------------------------------------------- record


@dataclass(frozen=True)
class Recorder:
    """An attention that also keeps what it was called with."""

    attention: Attention
    calls: list  # of (q, k, v, query_mask, key_mask)

    def __call__(self, q, k, v, *, query_mask=None, key_mask=None):
        """Attend as the wrapped attention does, and keep the arguments."""
        self.calls.append((q, k, v, query_mask, key_mask))
        return self.attention(q, k, v, query_mask=query_mask, key_mask=key_mask)


def record(model, batch):
    """Run a model on one batch: its (q, k, v, query_mask, key_mask), one for each layer.

    A batch is NumPy inputs. The masks, None for images, are those of padded text.

    Examples
    --------
    >>> from asap_ref.transformer import Architecture, Transformer
    >>> model = Transformer.create(Architecture(), Attention("softmax"))
    >>> [call[0].shape for call in record(model, np.zeros((3, 8, 8)))]
    [(3, 12, 17, 4), (3, 12, 17, 4)]
    """
    calls = []
    model.with_attention(*(Recorder(attention, calls) for attention in model.attentions))(model.place(batch))
    return calls


# ------------------------------------------------------------------------------------------------------ compile


def compile_model(
    model,
    batches,
    *,
    order="parallel",
    n_slices=16,
    quadratic=8,
    candidates=None,
    one_sided=False,
    client=None,
    progress=False,
    **settings,
):
    """Replace the Sinkhorn attention of a trained model by ASAP attention, without retraining.

    Parameters
    ----------
    model : Transformer
        Trained with Sinkhorn attention in every layer.
    batches : list of inputs
        Calibration data (no labels needed); gone through once for each layer, one batch in memory. Also paths of
        .npy files, a batch each, or a zarr or dask array, a batch a chunk of its first axis.
    order : {"parallel", "sequential"}
        Calibrate every layer on the activations of the trained model, or each on those that the layers below
        produce once they are compiled.
    n_slices, quadratic, candidates, **settings
        As in `fit_amortizer`; the teacher's n_iter and epsilon are those of the layer. Whole data sets have tokens
        enough for the quadratic features, so they are on here.
    one_sided : bool
        Predict the key dual instead, for one-sided attention (one_sided.py), an ablation.
    client, progress
        As in `fit_amortizer`: the model runs on the workers of a Dask cluster, and its activations stay there.

    Returns
    -------
    (Transformer, list of dict)
        The compiled model, which saves, loads and runs on its own, and a report for each layer: the share
        R² of the dual's variance that is explained, head by head, on the calibration data.

    Raises
    ------
    TypeError
        If batches can be gone through only once.
    ValueError
        If a layer's attention is not Sinkhorn with at least one iteration, or batches is empty.

    Notes
    -----
    Cost: for each layer, one forward pass of the model and one Sinkhorn run over the data. Source: ASAP's
    train-then-compile (paper).

    Examples
    --------
    >>> from asap_ref.transformer import Architecture, Transformer
    >>> teacher = Transformer.create(Architecture(), Attention("sinkhorn", {"n_iter": 5}))
    >>> images = np.random.default_rng(0).standard_normal((32, 8, 8))
    >>> compiled, report = compile_model(teacher, [images], n_slices=8)
    >>> [attention.name for attention in compiled.attentions]
    ['asap', 'asap']
    """
    if iter(batches) is batches:
        raise TypeError(
            "compile_model: batches can be gone through only once, but every layer needs them; give a list"
        )
    check_choice(order, "order", "compile_model", ("parallel", "sequential"))
    attentions, report = [], []
    for layer, attention in enumerate(model.attentions):
        below = model
        if order == "sequential":
            below = model.with_attention(*attentions, *model.attentions[layer:])
        if attention.name != "sinkhorn":
            raise ValueError(f"compile_model: layer {layer} has {attention.name} attention, expected sinkhorn")
        amortizer = fit_amortizer(
            Mapped(partial(activations, below, layer, one_sided), batches),
            n_slices=n_slices,
            quadratic=quadratic,
            candidates=candidates,
            client=client,
            progress=progress,
            **attention.settings,
            **settings,
        )
        attentions.append(Attention("one-sided" if one_sided else "asap", {"amortizer": amortizer}))
        report.append({"layer": layer, "r_squared": amortizer.r_squared.tolist()})
    return model.with_attention(*attentions), report


def activations(model, layer, exchanged, batch):
    """Queries and keys of one layer on one batch, with their masks if there are any.

    Keys are in the role of queries if ``exchanged``, for one-sided attention.
    """
    q, k, _, query_mask, key_mask = record(model, batch)[layer]
    if exchanged:
        q, k, query_mask, key_mask = k, q, key_mask, query_mask
    return (q, k) if query_mask is None and key_mask is None else (q, k, query_mask, key_mask)


# ----------------------------------------------------------------------------------------------------- fidelity


def fidelity(teacher, attentions, batch):
    """Compare attentions with a Sinkhorn teacher's, layer by layer, on the teacher's own q, k, v.

    Parameters
    ----------
    teacher : Transformer
        With Sinkhorn attention.
    attentions : sequence of Attention
        One for each layer.
    batch : inputs

    Returns
    -------
    list of dict
        For each layer, a list with one number a head of ``output_error`` (Frobenius norm of the difference in
        the attention output, relative to the teacher's) and ``column_error`` (mean distance of the plan's
        column sums from n'/m').

    Examples
    --------
    >>> from asap_ref.transformer import Architecture, Transformer
    >>> teacher = Transformer.create(Architecture(n_layers=1), Attention("sinkhorn", {"n_iter": 5}))
    >>> images = np.random.default_rng(0).standard_normal((32, 8, 8))
    >>> fidelity(teacher, teacher.attentions, images)[0]["output_error"][:3]
    [0.0, 0.0, 0.0]
    """
    if len(attentions) != len(teacher.attentions):
        raise ValueError(f"fidelity: {len(attentions)} attentions for {len(teacher.attentions)} layers")
    report = []
    for layer, (q, k, v, query_mask, key_mask) in enumerate(record(teacher, batch)):
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        expected = to_numpy(teacher.attentions[layer](q, k, v, **masks)).astype(np.float64)
        found = to_numpy(attentions[layer](q, k, v, **masks)).astype(np.float64)
        axes = (0, 2, 3)  # all but the head
        error = np.sqrt(np.sum((found - expected) ** 2, axes) / np.sum(expected**2, axes))
        report.append(
            {
                "layer": layer,
                "output_error": error.tolist(),
                "column_error": column_error(attentions[layer], q, k, **masks).tolist(),
            }
        )
    return report


def column_error(attention, q, k, *, query_mask=None, key_mask=None):
    """Mean distance of column sums from n'/m' in an attention's plan, one a head: NumPy (H,).

    Any attention shows its plan when the values are the identity.
    """
    xp = array_namespace(q, k)
    identity = xp.broadcast_to(xp.eye(k.shape[-2], dtype=q.dtype, device=q.device), (*k.shape[:-1], k.shape[-2]))
    plan = to_numpy(attention(q, k, identity, query_mask=query_mask, key_mask=key_mask)).astype(np.float64)
    columns = plan.sum(-2)  # (B, H, m)
    n, m = plan.shape[-2:]
    valid_queries = np.ones((1, 1, n), bool) if query_mask is None else to_numpy(query_mask)
    valid_keys = np.ones((1, 1, m), bool) if key_mask is None else to_numpy(key_mask)
    n_valid, m_valid = valid_queries.sum(-1, keepdims=True), valid_keys.sum(-1, keepdims=True)
    valid = np.broadcast_to(valid_keys & (n_valid > 0), columns.shape)
    distance = np.where(valid, np.abs(columns - n_valid / np.maximum(m_valid, 1)), 0.0)
    return distance.sum((0, 2)) / np.maximum(valid.sum((0, 2)), 1)


def hardness(model, batch, *, tolerance=0.05, most=100):
    """How hard a Sinkhorn model's attention is: score range and iterations needed, layer by layer, head by head.

    Parameters
    ----------
    model : Transformer
    batch : inputs
    tolerance : float
        A plan counts as converged when no column sum is off by more than this, on the mean over sequences.
    most : int
        Where to stop looking.

    Returns
    -------
    list of dict
        For each layer, lists with one number a head: ``score_range`` (largest minus smallest score of a
        sequence, over epsilon, mean) and ``iterations`` (``most`` where that was not enough).
    """
    report = []
    for layer, (q, k, _, query_mask, key_mask) in enumerate(record(model, batch)):
        settings = {"query_mask": query_mask, "key_mask": key_mask}
        settings["epsilon"] = model.attentions[layer].settings.get("epsilon", 1.0)
        S = attention_scores(q, k)
        spread = to_numpy(S).max((-2, -1)) - to_numpy(S).min((-2, -1))
        needed = np.full(q.shape[1], most)
        duals = sinkhorn(S, n_iter=0, **settings)
        for t in range(most):
            plan = transport_plan(S, duals, **settings)
            _, columns = marginal_error(plan, query_mask=query_mask, key_mask=key_mask)
            converged = np.mean(to_numpy(columns), axis=0) <= tolerance
            needed = np.where(converged, np.minimum(needed, t), needed)
            if converged.all():
                break
            duals = sinkhorn(S, n_iter=1, init=duals.query, **settings)
        report.append(
            {
                "layer": layer,
                "score_range": (spread.mean(0) / settings["epsilon"]).tolist(),
                "iterations": needed.tolist(),
            }
        )
    return report
