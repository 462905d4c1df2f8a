"""Train with Sinkhorn, then compile: fit one amortizer a layer and swap the attention. Nothing is retrained.

    record      run the trained model on calibration data and keep the queries and keys of a layer
    fit         map slice potentials and what else is known to their closure-ready dual: a weight vector a head
    swap        give the same parameters to ASAP attention
    fidelity    compare the two on other data, layer by layer and head by head

Every layer is calibrated on the activations of the trained model.
"""

from __future__ import annotations

from functools import partial

from asap_ref.calibration.fit import fit_amortizer
from asap_ref.calibration.holding_out import split
from asap_ref.calibration.sources import Mapped
from asap_ref.model.measures import output_error
from asap_ref.model.mechanism import MECHANISMS, Attention
from asap_ref.model.recording import activations, check_model, record
from asap_ref.support.arrays import count_of
from asap_ref.support.settings import check_choice, check_count, check_positive

CANDIDATES = 128  # slices from which each head's are chosen


def compile_model(
    model,
    batches,
    *,
    into="asap",
    n_slices=8,
    candidates=CANDIDATES,
    quadratic=8,
    moments=4,
    objective=None,
    refine=0,
    fallback=None,
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
    into : str
        The mechanism that takes the place of Sinkhorn's; "one-sided" is an ablation, which predicts the key dual.
    n_slices, candidates, quadratic, moments, objective, refine, **settings
        As in `fit_amortizer`; the teacher's n_iter and epsilon are those of the layer. The defaults are a map of few
        slices, well chosen, and of quadratic features and moments of low rank, which cost next to nothing at inference;
        where tokens are few for so many features, the penalty holds them back. The objective, when not given, is kl
        where the two-sided transform follows the prediction at once, of which it counts what is left then. After
        refining iterations kl is the worse one where sequences are few, and nothing repairs a key dual: there it is
        regression.
    fallback : float, optional
        Heads whose attention output is off by more than this (relative to the teacher's, on every tenth example
        of a batch, or the last of fewer, which then do not calibrate) stay with Sinkhorn. The report names them.
    client, progress
        As in `fit_amortizer`: the model runs on the workers of a Dask cluster, and its activations stay there.

    Returns
    -------
    (Transformer, list of dict)
        The compiled model, which saves, loads and runs on its own, and a report for each layer: its ``features``, how
        many of each family; the share R² of the dual's variance that is explained, head by head, on the calibration
        data and in the metric of the objective; with ``fallback``, the held-out ``output_error`` and the heads left
        ``on_sinkhorn`` as well.

    Raises
    ------
    TypeError
        If model is no Transformer, or batches can be gone through only once, or not at all.
    ValueError
        If a layer's attention is not Sinkhorn with at least one iteration, or batches is empty, or too small to
        hold any example out.

    Notes
    -----
    Cost: for each layer, one forward pass of the model and one Sinkhorn run over the data. Source: ASAP's
    train-then-compile (paper).

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Architecture, Transformer
    >>> teacher = Transformer.create(Architecture(), Attention("sinkhorn", {"n_iter": 5}))
    >>> images = np.random.default_rng(0).standard_normal((32, 8, 8))
    >>> compiled, report = compile_model(teacher, [images], n_slices=8)
    >>> [attention.name for attention in compiled.attentions]
    ['asap', 'asap']
    """
    check_model(model, "model", "compile_model")
    if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise TypeError(f"compile_model: batches must be a list of inputs, got {type(batches).__name__}")
    axes = 2 if getattr(model.architecture, "kind", None) == "text" else 3
    if len(getattr(batches, "shape", ())) == axes and not hasattr(batches, "chunks"):  # Dask and zarr have batches
        raise TypeError("compile_model: batches is a list of inputs, got the inputs of one batch; give [inputs]")
    if iter(batches) is batches:
        raise TypeError(
            "compile_model: batches can be gone through only once, but every layer needs them; give a list"
        )
    refine = check_count(refine, "refine", "compile_model", least=0)
    targets = {name: mechanism.predicts for name, mechanism in MECHANISMS.items() if mechanism.predicts}
    check_choice(into, "into", "compile_model", tuple(targets))
    for layer, attention in enumerate(model.attentions):  # before any of them takes its time
        if not attention.mechanism.teaches:
            raise ValueError(f"compile_model: layer {layer} has {attention.name} attention, expected sinkhorn")
    if objective is None:
        objective = "kl" if targets[into] == "query" and refine == 0 else "regression"
    calibration = batches
    if fallback is not None:
        fallback = check_positive(fallback, "fallback", "compile_model", or_zero=True)
        calibration, held_out = (Mapped(partial(split, side), batches) for side in ("fit", "held out"))
        if not any(map(count_of, held_out)):
            raise ValueError("compile_model: batches of one example each leave none to hold out")
    attentions, report = [], []
    for layer, attention in enumerate(model.attentions):
        amortizer = fit_amortizer(
            Mapped(partial(activations, model, layer, targets[into] == "key"), calibration),
            n_slices=n_slices,
            candidates=candidates,
            quadratic=quadratic,
            moments=moments,
            objective=objective,
            refine=refine,
            client=client,
            progress=progress,
            **attention.settings,
            **settings,
        )
        replaced = Attention(into, {"amortizer": amortizer})
        features = {family.name: family.count for family in amortizer.families}
        told = {"layer": layer, "features": features, "r_squared": amortizer.r_squared.tolist()}
        if fallback is not None:
            errors = output_error(
                attention, replaced, (record(model, batch)[layer] for batch in held_out if count_of(batch))
            )
            bad = [h for h, error in enumerate(errors) if error > fallback]
            replaced = leave_heads(replaced, attention, bad)
            told |= {"output_error": errors.tolist(), "on_sinkhorn": bad}
        attentions.append(replaced)
        report.append(told)
    return model.with_attention(*attentions), report


def leave_heads(compiled, teacher, heads):
    """Return the compiled attention with some heads left to the teacher's."""
    count = len(compiled.settings["amortizer"].weights)
    return head_by_head([teacher if h in heads else compiled for h in range(count)])


def head_by_head(attentions):
    """Make one attention of one for each head, of which it takes that head: mixed, or all alike as it is."""
    parts = {}
    for head, attention in enumerate(attentions):
        parts.setdefault(id(attention), (attention, []))[1].append(head)
    if len(parts) == 1:
        return attentions[0]
    return Attention("mixed", {"parts": tuple((_of_heads(*part), tuple(part[1])) for part in parts.values())})


def _of_heads(attention, heads):
    """Return the attention with the weights of these heads only."""
    if not attention.mechanism.predicts:
        return attention
    amortizer = attention.settings["amortizer"].of_heads(heads)
    return Attention(attention.name, {**attention.settings, "amortizer": amortizer})
