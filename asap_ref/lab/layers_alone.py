"""The attention of a trained model without the rest of it: how near and how fast what replaces the teacher's is."""

from __future__ import annotations

import math
import time
from functools import partial

import numpy as np

from asap_ref.lab.readable import ReadableAttention
from asap_ref.lab.replacements import geometric_mean
from asap_ref.lab.stopwatch import interleaved
from asap_ref.model.measures import output_error
from asap_ref.model.mechanism import Attention
from asap_ref.model.recording import record


def race_layer(given, attentions, call, **pace):
    """Output error of each head against the teacher's attention, and median milliseconds: {name: ((H,), ms)}.

    A call is (q, k, v, query_mask, key_mask) of a layer; the pace is that of `interleaved`.
    """
    *arrays, query_mask, key_mask = call
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    calls = {name: partial(attention, *arrays, **masks) for name, attention in attentions.items()}
    seconds = interleaved(calls, **pace)
    out = given(*arrays, **masks)  # once for all
    return {
        name: (output_error(lambda *_, **masks: out, attention, [call]), 1e3 * float(np.median(seconds[name])))
        for name, attention in attentions.items()
    }


def compare_layers(variants, inputs, length):
    """Rows of the attention alone, layer by layer, on the teacher's own q, k, v of the inputs of a timed forward pass.

    Errors are those of these inputs. The teacher in the log domain is timed once, on the first layer.
    """
    teacher, rows = variants["sinkhorn"], []
    with_parameters = {
        name: model
        for name, model in variants.items()
        if model.params is teacher.params and name in (length.alone or variants)
    }
    for layer, (q, k, v, query_mask, key_mask) in enumerate(record(teacher, inputs)):
        attentions = {name: model.attentions[layer] for name, model in with_parameters.items()}
        given, attentions["softmax"] = attentions["sinkhorn"], Attention("softmax")
        call = (q, k, v, query_mask, key_mask)
        found = race_layer(given, attentions, call, rounds=length.rounds, budget=math.inf)
        ms = {name: each for name, (_, each) in found.items()}
        if layer == 0:
            began = time.perf_counter()
            ReadableAttention(given.name, given.settings)(q, k, v, query_mask=query_mask, key_mask=key_mask)
            log_domain = 1e3 * (time.perf_counter() - began)
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
