"""The attention of a trained model without the rest of it: how near and how fast what replaces the teacher's is."""

from __future__ import annotations

import time

import numpy as np

from asap_ref.lab.readable import ReadableAttention
from asap_ref.lab.stopwatch import interleaved
from asap_ref.model.measures import as_float64, relative_error
from asap_ref.model.mechanism import Attention


def race_layer(given, attentions, call, **pace):
    """Output error of each head against the teacher's attention, and median milliseconds: {name: ((H,), ms)}.

    A call is (q, k, v, query_mask, key_mask) of a layer; the pace is that of `interleaved`.
    """
    *arrays, query_mask, key_mask = call
    masks, outputs = {"query_mask": query_mask, "key_mask": key_mask}, {}

    def run(name):
        outputs[name] = attentions[name](*arrays, **masks)
        return outputs[name]

    seconds = interleaved({name: lambda name=name: run(name) for name in attentions}, **pace)
    expected = next((outputs[name] for name, each in attentions.items() if each is given), None)
    expected = as_float64(given(*arrays, **masks) if expected is None else expected)
    return {
        name: (relative_error(expected, as_float64(outputs[name])), 1e3 * float(np.median(seconds[name])))
        for name in attentions
    }


def compare_layers(variants, calls, length):
    """Rows of the attention alone, on what each layer of the teacher is given: (q, k, v, query_mask, key_mask).

    The teacher in the log domain is timed once, on the first head of the first layer, and counts for all of them.
    """
    teacher, rows = variants["sinkhorn"], []
    with_parameters = {
        name: model
        for name, model in variants.items()
        if model.params is teacher.params and name in (length.alone or variants)
    }
    for layer, call in enumerate(calls):
        attentions = {name: model.attentions[layer] for name, model in with_parameters.items()}
        given, attentions["softmax"] = attentions["sinkhorn"], Attention("softmax")
        pace = {"rounds": length.alone_rounds or length.rounds, "least": length.rounds, "budget": 1.0}
        found = race_layer(given, attentions, call, **pace)
        ms = {name: each for name, (_, each) in found.items()}
        log_domain = log_domain_of_a_head(given, *call) if layer == 0 else None
        for name, (errors, _) in found.items():
            rows.append(
                {
                    "n": length.n,
                    "layer": layer,
                    "attention": name,
                    "output_error": None if name == "softmax" else geometric_mean(errors),
                    "ms": ms[name],
                    "speedup": ms["sinkhorn"] / ms[name],
                    "speedup_log_domain": log_domain / ms[name] if layer == 0 else None,
                    "over_softmax": ms[name] / ms["softmax"],
                }
            )
    return rows


def log_domain_of_a_head(given, q, k, v, query_mask, key_mask):
    """Milliseconds of all heads by the loop in the log domain, as many times what the first one takes."""
    began = time.perf_counter()
    first = (x[:, :1] for x in (q, k, v))
    ReadableAttention(given.name, given.settings)(*first, query_mask=query_mask, key_mask=key_mask)
    return q.shape[1] * 1e3 * (time.perf_counter() - began)


def geometric_mean(x):
    """Geometric mean over heads: the errors of easy and hard heads differ by powers of ten."""
    x = np.asarray(x)
    return float(np.exp(np.mean(np.log(x)))) if np.all(x > 0) else 0.0
