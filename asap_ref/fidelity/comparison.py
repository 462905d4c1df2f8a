"""Attentions beside the teacher's on the teacher's own queries, keys and values: the short form of a report."""

from __future__ import annotations

from asap_ref.model.measures import column_errors, output_error
from asap_ref.model.recording import record


def compare_attentions(teacher, attentions, batch):
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
        For each layer, a list with one number a head of ``output_error`` and ``column_error``.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Architecture, Attention, Transformer
    >>> teacher = Transformer.create(Architecture(n_layers=1), Attention("sinkhorn", {"n_iter": 5}))
    >>> images = np.random.default_rng(0).standard_normal((32, 8, 8))
    >>> compare_attentions(teacher, teacher.attentions, images)[0]["output_error"][:3]
    [0.0, 0.0, 0.0]
    """
    if len(attentions) != len(teacher.attentions):
        raise ValueError(f"compare_attentions: {len(attentions)} attentions for {len(teacher.attentions)} layers")
    report = []
    for layer, call in enumerate(record(teacher, batch)):
        error = output_error(teacher.attentions[layer], attentions[layer], [call])
        columns = column_errors(attentions[layer], call)
        report.append({"layer": layer, "output_error": error.tolist(), "column_error": columns.mean(0).tolist()})
    return report
