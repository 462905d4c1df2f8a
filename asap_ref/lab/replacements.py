"""What can stand in for the teacher's attention without retraining, and a row for each: how near, how fast."""

from __future__ import annotations

import numpy as np

from asap_ref.fidelity.comparison import compare_attentions
from asap_ref.lab.runs import (
    calibration_batches,
    forward_milliseconds,
    log_domain_milliseconds,
    sample,
    whole_batches,
)
from asap_ref.model.compilation import compile_model
from asap_ref.model.mechanism import Attention
from asap_ref.model.training import predict
from asap_ref.rivals.initial_duals import STARTS

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
    """Rows of the table at one length: every variant of the model against the one called "sinkhorn", the teacher.

    A model that was trained on its own (its parameters are not the teacher's) has no attention output error. The
    teacher in the log domain is no row; how many times a row is faster than it stands in ``speedup_log_domain``.
    """
    teacher = variants["sinkhorn"]
    batches = whole_batches(inputs if length.timed is None else inputs[: length.timed])
    times = forward_milliseconds(variants, batches, length.rounds)
    log_domain = log_domain_milliseconds(teacher, batches, length.log_rounds) if length.log_rounds else None
    expected = np.argmax(predict(teacher, inputs, batch_size=length.batch_size), axis=-1)
    few = sample(inputs, length.sampled)
    rows = []
    for name, model in variants.items():
        found = np.argmax(predict(model, inputs, batch_size=length.batch_size), axis=-1)
        same_parameters = model.params is teacher.params
        by_layer = compare_attentions(teacher if same_parameters else model, model.attentions, few)
        errors = np.concatenate([layer["output_error"] for layer in by_layer])
        rows.append(
            {
                "n": length.n,
                "attention": name,
                "accuracy": float(np.mean(found == labels)),
                "agreement": float(np.mean(found == expected)),
                "output_error": geometric_mean(errors) if same_parameters else None,
                "column_error": float(np.mean([layer["column_error"] for layer in by_layer])),
                "ms_per_forward": times[name],
                "speedup": times["sinkhorn"] / times[name],
                "speedup_log_domain": None if log_domain is None else log_domain / times[name],
            }
        )
    return rows


def geometric_mean(x):
    """Geometric mean over heads: the errors of easy and hard heads differ by powers of ten."""
    x = np.asarray(x)
    return float(np.exp(np.mean(np.log(x)))) if np.all(x > 0) else 0.0
