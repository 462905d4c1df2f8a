"""What can stand in for the teacher's attention without retraining, and a row for each: how near, how fast."""

from __future__ import annotations

import numpy as np

from asap_ref.lab.experiments import MAIN
from asap_ref.lab.layers_alone import compare_layers, geometric_mean
from asap_ref.lab.runs import (
    calibration_batches,
    forward_passes,
    log_domain_milliseconds,
    sample,
    whole_batches,
)
from asap_ref.model.compilation import compile_model
from asap_ref.model.measures import column_error
from asap_ref.model.mechanism import Attention
from asap_ref.model.recording import record
from asap_ref.rivals.initial_duals import STARTS

SUMMED = 2**20  # scores of the inputs whose column sums are taken: those need a backward pass
RELAXED, OMEGA = (1, 2, 3), 1.7  # over-relaxed iterations before the closing one


def variants(models, data, run):
    """Models in the order of the table, {name: model}: as trained, the teacher cut short, ASAP, its rivals."""
    as_trained = {name: model for name, model in models.items() if name != "asap"}
    teacher = models["sinkhorn"]
    cut = truncated(teacher, run.truncations)
    return as_trained | cut | {"asap": models["asap"]} | rivals(teacher, data, run)


def truncated(teacher, iterations):
    """Cut the teacher to fewer iterations: {name: model}."""
    return in_every_layer(teacher, lambda attention: cut_short(attention, iterations))


def in_every_layer(teacher, make):
    """Models from what takes the place of a layer's attention: ``make(attention) -> {name: attention}``."""
    layers = [make(attention) for attention in teacher.attentions]
    return {name: teacher.with_attention(*(layer[name] for layer in layers)) for name in layers[0]}


def cut_short(attention, iterations):
    """Sinkhorn of fewer iterations: {name: attention}."""
    return {f"sinkhorn-{t}": Attention("sinkhorn", {**attention.settings, "n_iter": t}) for t in iterations}


def without_learning(attention):
    """A few over-relaxed iterations, from softmax and from the Gaussian dual, and dual softmax: {name: attention}."""
    epsilon = attention.setting("epsilon")
    found = {}
    for initial, counts in (("softmax", RELAXED), ("gaussian", RELAXED[:2])):
        for t in counts:
            settings = {"n_iter": t, "omega": OMEGA, "initial": initial, "epsilon": epsilon}
            found[f"over-relaxed-{initial}-{t}"] = Attention("over-relaxed", settings)
    return found | {"dual-softmax": Attention("dual-softmax", {"epsilon": epsilon})}


def from_initial_duals(attention):
    """Three duals that nobody learned, each with the two-sided transform of ASAP: {name: attention}."""
    epsilon = attention.setting("epsilon")
    return {f"initial-{start}": Attention("initial", {"start": start, "epsilon": epsilon}) for start in STARTS}


def rivals(teacher, data, run):
    """What else could replace the teacher's attention without retraining, {name: model}: those the experiment names.

    Three duals that nobody learned, each with the two-sided transform of ASAP; a few over-relaxed iterations; dual
    softmax; ASAP refined, with features of one pass, and on the key side, each compiled by itself.
    """
    found = in_every_layer(teacher, from_initial_duals) | in_every_layer(teacher, without_learning)
    compiled = {
        "asap-refined": {"refine": 1},
        "asap-one-pass": {"one_pass": run.teacher.get("epsilon", 1.0)},
        "one-sided": {"into": "one-sided"},
    }
    for name in compiled if run.rivals is None else compiled.keys() & set(run.rivals):
        settings = {**run.compilation, **compiled[name]}
        found[name], _ = compile_model(teacher, calibration_batches(run, data), **settings)
    return {name: found[name] for name in (found if run.rivals is None else run.rivals)}


def compare(variants, inputs, labels, length):
    """Rows of the table at one length, and those of the attention alone: all against the one called "sinkhorn".

    A model that was trained on its own (its parameters are not the teacher's) has no attention output error. The
    teacher in the log domain is no row; how many times a row is faster than it stands in ``speedup_log_domain``.
    """
    teacher, chosen = variants["sinkhorn"], {x: variants[x] for x in variants if x in (length.only or variants)}
    wanted = {name: len(inputs) for name in chosen}
    if length.judged_others is not None:
        wanted |= {name: min(length.judged_others, len(inputs)) for name in chosen if name not in MAIN}
    logits, times = forward_passes(chosen, inputs, timed=length.timed, wanted=wanted, rounds=length.rounds)
    log_domain = None
    if length.log_rounds:
        one_pass = whole_batches(inputs if length.timed is None else inputs[: length.timed])
        log_domain = log_domain_milliseconds(teacher, one_pass, length.log_rounds)
    few = sample(inputs, length.sampled)
    calls, errors = record(teacher, few), {}
    layers = compare_layers(variants, calls, length)
    for row in layers:
        errors.setdefault(row["attention"], []).append(row["output_error"])
    seen = {name: np.argmax(each, axis=-1) for name, each in logits.items()}
    rows = []
    for name, model in chosen.items():
        found, same_parameters = seen[name], model.params is teacher.params
        rows.append(
            {
                "n": length.n,
                "attention": name,
                "judged": len(found),
                "accuracy": float(np.mean(found == labels[: len(found)])),
                "agreement": float(np.mean(found == seen["sinkhorn"][: len(found)])),
                "output_error": geometric_mean(errors[name]) if same_parameters else None,
                "column_error": column_error(
                    model, map(some_of, calls if same_parameters else record(model, few))
                ),
                "ms_per_forward": times[name],
                "speedup": times["sinkhorn"] / times[name],
                "speedup_log_domain": None if log_domain is None else log_domain / times[name],
            }
        )
    return rows, layers


def some_of(call):
    """The first inputs of what a layer is given, so many as have SUMMED scores, one at least."""
    _, H, n, _ = call[0].shape
    most = max(SUMMED // (H * n * n), 1)
    return tuple(None if x is None else x[:most] for x in call)
