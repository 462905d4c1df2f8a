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
    for layer, (q, k, v, *masks) in enumerate(record(teacher, inputs)):
        masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
        attentions = {name: model.attentions[layer] for name, model in with_parameters.items()}
        calls = {name: partial(attention, q, k, v, **masks) for name, attention in attentions.items()}
        calls["softmax"] = partial(Attention("softmax"), q, k, v, **masks)
        seconds = interleaved(calls, rounds=length.rounds, budget=math.inf)
        ms = {name: 1e3 * float(np.median(each)) for name, each in seconds.items()}
        if layer == 0:
            began, given = time.perf_counter(), attentions["sinkhorn"]
            ReadableAttention(given.name, given.settings)(q, k, v, **masks)
            log_domain = 1e3 * (time.perf_counter() - began)
        for name in calls:
            error = None
            if name != "softmax":
                error = geometric_mean(
                    output_error(attentions["sinkhorn"], attentions[name], [(q, k, v, *masks.values())])
                )
            rows.append(
                {
                    "n": length.n,
                    "layer": layer,
                    "attention": name,
                    "output_error": error,
                    "ms": ms[name],
                    "speedup": ms["sinkhorn"] / ms[name],
                    "speedup_log_domain": log_domain / ms[name] if layer == 0 else None,
                    "over_softmax": ms[name] / ms["softmax"],
                }
            )
    return rows
