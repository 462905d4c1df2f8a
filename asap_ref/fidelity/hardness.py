"""How hard the attention of a model is: the range of its scores, and how many Sinkhorn iterations it needs."""

from __future__ import annotations

import numpy as np

from asap_ref.fidelity.diagnostics import marginal_error
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import attention_scores, transport_plan
from asap_ref.model.measures import as_float64, valid_tokens
from asap_ref.model.recording import check_model, record
from asap_ref.support.arrays import to_numpy
from asap_ref.support.settings import check_count, check_positive


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
    tolerance = check_positive(tolerance, "tolerance", "hardness")
    check_count(most, "most", "hardness", least=1)
    check_model(model, "model", "hardness")
    for layer, attention in enumerate(model.attentions):
        if not attention.mechanism.teaches:
            raise ValueError(f"hardness: layer {layer} has {attention.name} attention, expected sinkhorn")
    report = []
    for layer, (q, k, _, query_mask, key_mask) in enumerate(record(model, batch)):
        settings = {"query_mask": query_mask, "key_mask": key_mask}
        settings["epsilon"] = model.attentions[layer].setting("epsilon")
        S = attention_scores(q, k)
        spread = score_range(S, valid_tokens(q, query_mask), valid_tokens(k, key_mask))
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


def score_range(S, valid_queries, valid_keys):
    """Largest less smallest score at pairs of tokens: (B, H, n, m) -> NumPy float64 (B, H)."""
    S, valid = as_float64(S), valid_queries[..., :, None] & valid_keys[..., None, :]
    high, low = np.where(valid, S, -np.inf).max((-2, -1)), np.where(valid, S, np.inf).min((-2, -1))
    return np.where(valid.any((-2, -1)), high - low, 0.0)
