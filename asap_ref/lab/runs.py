"""What every experiment does with its data and models: train, batch, sample, time a forward pass."""

from __future__ import annotations

import functools
import math
import time

import numpy as np

from asap_ref.lab.readable import ReadableAttention
from asap_ref.lab.stopwatch import PAUSE, interleaved, turns
from asap_ref.model.batching import batches, trimmed
from asap_ref.model.pieces import logits_in_pieces
from asap_ref.model.training import train
from asap_ref.model.transformer import Transformer
from asap_ref.support.arrays import to_numpy


def trained(run, data, attention, *, xp=np, **options):
    """Train the model of an experiment with an attention in every layer; the options are those of `train`."""
    names = {"classes": data.classes, "words": data.vocabulary}
    model = Transformer.create(run.architecture, attention, seed=run.training.seed, xp=xp, **names)
    return train(model, data.train_inputs, data.train_labels, run.training, augment=run.augment, **options)[0]


def whole_batches(inputs):
    """All inputs in batches that fit into memory, texts with others of like length."""
    return [trimmed(inputs[picked]) for picked in batches(inputs, 512)]


def calibration_batches(run, data):
    """Training inputs, without labels, on which an experiment calibrates."""
    return whole_batches(run.as_read(every(data.train_inputs, run.calibrate_on or len(data.train_inputs))))


def sample(inputs, most=400):
    """Some of the inputs, for what needs whole plans: those of all of them may not fit into memory."""
    return trimmed(every(inputs, most))


def every(inputs, most):
    """Every so many-th of the inputs, ``most`` of them at most.

    Examples
    --------
    >>> every(np.arange(10), 4)
    array([0, 3, 6, 9])
    """
    return inputs[:: math.ceil(len(inputs) / most)]


def forward_passes(variants, inputs, *, timed=None, wanted, rounds):
    """Logits of models and median milliseconds of a forward pass, from the same passes, the models taking turns.

    Parameters
    ----------
    variants : {name: model}
    timed : int, optional
        Inputs of a pass, where none can be padded; None: all of them, texts in batches of like length.
    wanted : {name: int}
        How many inputs each is to give logits of.
    rounds : int
        Passes that each takes at least, after one that is not timed.

    Returns
    -------
    ({name: logits (wanted, C)}, {name: milliseconds})
    """
    passes = [batches(inputs, 512)] if timed is None else [[picked] for picked in batches(inputs, timed)]
    in_order = [np.argsort(np.concatenate(batch)) for batch in passes]  # texts were sorted by length
    like, names, size = next(iter(variants.values())), list(variants), timed or len(inputs)
    placed = [[like.place(trimmed(inputs[picked])) for picked in batch] for batch in passes]
    logits, seconds = {name: [] for name in names}, {name: [] for name in names}
    labelled = {name: math.ceil(wanted[name] / size) for name in names}  # passes
    for i in range(max(*labelled.values(), rounds + 1)):
        for name in turns(names, i):
            if i >= max(labelled[name], rounds + 1):
                continue
            time.sleep(PAUSE)
            began = time.perf_counter()
            found = _forward(variants[name], placed[i % len(placed)])
            seconds[name].append(time.perf_counter() - began)
            if i < labelled[name]:
                logits[name].append(np.concatenate(found)[in_order[i]])
    return (
        {name: np.concatenate(each)[: wanted[name]] for name, each in logits.items()},
        {name: 1e3 * float(np.median(each[1:])) for name, each in seconds.items()},
    )


def forward_milliseconds(variants, batches, rounds):
    """Median milliseconds of a forward pass over all batches, the variants taking turns."""
    placed = [next(iter(variants.values())).place(batch) for batch in batches]
    calls = {name: functools.partial(_forward, model, placed) for name, model in variants.items()}
    times = interleaved(calls, rounds=rounds, budget=math.inf)
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in times.items()}


def log_domain_milliseconds(teacher, batches, rounds):
    """Median milliseconds of the forward pass of a teacher whose loop is in the log domain, as the literature runs it.

    That is one operation on the whole batch after another. (torch, on all cores, takes no less: figures/speed/bars.md.)
    It takes its turns alone: beside the others it would be most of the time that is spent.
    """
    readable = [ReadableAttention(attention.name, attention.settings) for attention in teacher.attentions]
    model, seconds = teacher.with_attention(*readable), []
    placed = [teacher.place(batch) for batch in batches]
    for _ in range(rounds):
        began = time.perf_counter()
        for batch in placed:
            to_numpy(model(batch))
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds))


def _forward(model, placed):
    return tuple(to_numpy(logits_in_pieces(model, batch)) for batch in placed)  # waits for the device
