"""What can stand in for the teacher's attention without retraining, and a row for each: how near, how fast."""

from __future__ import annotations

from functools import partial

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
    return as_trained | truncated(teacher, run) | {"asap": models["asap"]} | rivals(teacher, data, run)


def truncated(teacher, run):
    """Cut the teacher to fewer iterations: {name: model}."""
    return {
        f"sinkhorn-{t}": teacher.with_attention(Attention("sinkhorn", {**run.teacher, "n_iter": t}))
        for t in run.truncations
    }


def rivals(teacher, data, run):
    """What else could replace the teacher's attention without retraining, {name: model}: those the experiment names.

    ASAP refined, with features of one pass, and on the key side; three duals that nobody learned, each with the
    two-sided transform of ASAP; a few over-relaxed iterations, from softmax and from the Gaussian dual; dual softmax.
    """
    epsilon = run.teacher.get("epsilon", 1.0)

    def compiled(into="asap", **more):
        batches = calibration_batches(run, data)
        return compile_model(teacher, batches, **{"into": into, **run.compilation, **more})[0]

    def closed_by(name, **settings):
        return teacher.with_attention(Attention(name, {**settings, "epsilon": epsilon}))

    makers = {
        "asap-refined": partial(compiled, refine=1),
        "asap-one-pass": partial(compiled, one_pass=epsilon),
        "one-sided": partial(compiled, into="one-sided"),
    }
    makers |= {f"initial-{start}": partial(closed_by, "initial", start=start) for start in STARTS}
    for initial, counts in (("softmax", RELAXED), ("gaussian", RELAXED[:2])):
        for t in counts:
            settings = {"n_iter": t, "omega": OMEGA, "initial": initial}
            makers[f"over-relaxed-{initial}-{t}"] = partial(closed_by, "over-relaxed", **settings)
    makers["dual-softmax"] = partial(closed_by, "dual-softmax")
    return {name: makers[name]() for name in (makers if run.rivals is None else run.rivals)}


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
