"""Which attention to use for a model of one's own: time and error of each, at its length, on this machine.

    softmax, dual-softmax             one pass; columns are not met
    sinkhorn                          the teacher
    sinkhorn-t                        the teacher cut to t iterations
    over-relaxed-softmax-t            t over-relaxed iterations and a closing one, from the dual of softmax
    over-relaxed-gaussian-t           the same from the Gaussian dual
    asap, asap-refined                the default map of `compile_model`, without and with a refining iteration
    mixed                             each head with the cheapest of these that is good enough there

Everybody runs on the teacher's own q, k, v. An error is that of the attention output, relative to the teacher's, head
by head; where one number stands for several heads it is their geometric mean, and the worst head stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from asap_ref.fidelity.report import teacher_of
from asap_ref.lab.layers_alone import race_layer
from asap_ref.lab.replacements import geometric_mean, in_every_layer, truncated, without_learning
from asap_ref.model.batching import lengths
from asap_ref.model.compilation import compile_model, head_by_head
from asap_ref.model.mechanism import Attention
from asap_ref.model.recording import check_model, record
from asap_ref.model.sequences import Sequences
from asap_ref.support.arrays import array_namespace
from asap_ref.support.settings import check_count, check_positive
from asap_ref.support.tables import markdown_table

CUTS = (1, 2, 3, 5)  # iterations
MIXED = "mixed"
PACE = {"rounds": 7, "least": 3, "budget": 2.0}  # as `interleaved` takes them
SCORES = 2**22  # of a head, in a batch of sequences that `some_of` picks


@dataclass(frozen=True)
class Advice:
    """What was measured, and what follows from it at a given error.

    Examples
    --------
    >>> from asap_ref import Architecture, Attention, Transformer
    >>> teacher = Transformer.create(Architecture(n_layers=1, n_heads=4), Attention("sinkhorn", {"n_iter": 8}))
    >>> images = np.random.default_rng(0).standard_normal((80, 8, 8))
    >>> found = advise(teacher, images[:16], [images[16:]])
    >>> found.error_of("sinkhorn"), found.cheapest(0.0)
    (0.0, 'sinkhorn')
    """

    models: dict  # name -> Transformer
    rows: list  # of dict: layer, attention, ms, output_error (a list, one number a head)
    error: float  # that is allowed
    about: dict  # sequences, tokens, array module

    def ms(self, name):
        """Milliseconds of the attention of all layers."""
        return sum(row["ms"] for row in self.rows if row["attention"] == name)

    def errors(self, name):
        """Output error of each head of each layer, in a row."""
        return np.concatenate([row["output_error"] for row in self.rows if row["attention"] == name])

    def error_of(self, name):
        """Geometric mean of these errors."""
        return geometric_mean(self.errors(name))

    def cheapest(self, error=None, *, every_head=False):
        """Name of what takes the least time of all that is within an error, on the mean or at every head."""
        error, size = self.error if error is None else error, np.max if every_head else geometric_mean
        return min((name for name in self.models if size(self.errors(name)) <= error), key=self.ms)

    def chosen(self):
        """Names, [layer][head], of what takes the least time of all that is within the error at that head."""
        found = []
        for layer in range(1 + max(row["layer"] for row in self.rows)):
            rows = [row for row in self.rows if row["layer"] == layer and row["attention"] != MIXED]
            heads = range(len(rows[0]["output_error"]))
            within = [[row for row in rows if row["output_error"][h] <= self.error] for h in heads]
            found.append([min(some, key=lambda row: row["ms"])["attention"] for some in within])
        return found

    def mixture(self):
        """Make the model in which each head has what `chosen` says."""
        attentions = [
            head_by_head([self.models[name].attentions[layer] for name in names])
            for layer, names in enumerate(self.chosen())
        ]
        return self.models["sinkhorn"].with_attention(*attentions)

    def markdown(self):
        """Write a line for each attention, the cheapest first."""
        lines = [["attention", "ms", "/ softmax", "output error", "at the worst head", "heads within"]]
        for name in sorted(self.models, key=self.ms):
            errors = self.errors(name)
            within = f"{np.sum(errors <= self.error)} of {len(errors)}"
            times = [f"{self.ms(name):.2f}", f"{self.ms(name) / self.ms('softmax'):.2f}"]
            lines.append([name, *times, f"{self.error_of(name):.3f}", f"{errors.max():.3f}", within])
        return markdown_table(lines)

    def sentence(self):
        """Say what to use."""
        best, safe, about = self.cheapest(), self.cheapest(every_head=True), self.about
        on = f"{about['sequences']} sequences of {about['tokens']} tokens on {about['backend']}"
        told = (
            f"Within {self.error:.3g} of the teacher the cheapest is {best}: {self.ms(best):.2f} ms for {on}, where "
            f"the teacher takes {self.ms('sinkhorn'):.2f} and softmax {self.ms('softmax'):.2f}."
        )
        if safe == best:
            return f"{told} Every head is within it."
        worst = self.errors(best).max()
        told = f"{told} Its worst head is off by {worst:.3f}; every head is within with {safe}, {self.ms(safe):.2f} ms"
        if safe != MIXED:
            return f"{told}."
        heads = {}
        for layer, names in enumerate(self.chosen()):
            for head, name in enumerate(names):
                heads.setdefault(name, []).append(f"{layer}.{head}")
        parts = "; ".join(f"{name} for {', '.join(those)}" for name, those in heads.items())
        return f"{told}, (layer.head) {parts}."


def advise(model, inputs, calibration, *, error=0.05, **settings):
    """Measure what can replace the attention of a model, and say what is cheapest within an error.

    Parameters
    ----------
    model : Transformer
        With Sinkhorn attention, or compiled from such a one, whose teacher is taken then. Its array module is used.
    inputs
        A batch as the model is to be run on, of the length that matters: time and error are those of this batch.
    calibration : list of inputs
        For `compile_model`: other data than inputs.
    error : float
        How far the attention output may be from the teacher's, relative to it.
    **settings
        As in `compile_model`, for the two maps.

    Returns
    -------
    Advice

    Raises
    ------
    TypeError, ValueError
        As `compile_model` does; or if error is no number of at least 0.

    Notes
    -----
    One calibration, and some ten forward passes of each attention. Times are medians of interleaved calls
    (stopwatch.py) of the attention alone, without the rest of the model. Where heads choose differently, a mixture of
    their choices is timed too: to attend in parts takes time of its own, so it does not always pay.

    Examples
    --------
    >>> from asap_ref import Architecture, Attention, Transformer
    >>> teacher = Transformer.create(Architecture(n_layers=1, n_heads=4), Attention("sinkhorn", {"n_iter": 8}))
    >>> images = np.random.default_rng(0).standard_normal((80, 8, 8))
    >>> found = advise(teacher, images[:16], [images[16:]], error=0.1)
    >>> found.error_of(found.cheapest()) <= 0.1, found.sentence()[:37]
    (True, 'Within 0.1 of the teacher the cheapes')
    """
    check_model(model, "model", "advise")
    error = check_positive(error, "error", "advise", or_zero=True)
    teaches = all(attention.mechanism.teaches for attention in model.attentions)
    teacher = model if teaches else teacher_of(model)
    models = candidates(teacher, calibration, **settings)
    calls = record(teacher, inputs)
    q = calls[0][0]
    module = array_namespace(q).__name__.removeprefix("array_api_compat.")
    about = {"sequences": q.shape[0], "tokens": q.shape[-2], "backend": module}
    found = Advice(models, measured(teacher, models, calls), error, about)
    if len({name for names in found.chosen() for name in names}) == 1:
        return found
    mixed = {MIXED: found.mixture()}
    return replace(found, models=models | mixed, rows=found.rows + measured(teacher, mixed, calls))


def candidates(teacher, calibration, **settings):
    """Everything that is to be compared: {name: model}."""
    cuts = [t for t in CUTS if t < min(attention.setting("n_iter") for attention in teacher.attentions)]
    refined, _ = compile_model(teacher, calibration, **{"refine": 1} | settings)
    amortizers = [attention.settings["amortizer"] for attention in refined.attentions]
    asap = [Attention("asap", {"amortizer": replace(amortizer, refine=0)}) for amortizer in amortizers]
    return {
        "softmax": teacher.with_attention(Attention("softmax")),
        "sinkhorn": teacher,
        **truncated(teacher, cuts),
        **in_every_layer(teacher, without_learning),
        "asap": teacher.with_attention(*asap),
        "asap-refined": refined,
    }


def measured(teacher, models, calls):
    """Rows of an `Advice`, on the calls of each layer (q, k, v, query_mask, key_mask)."""
    rows = []
    for layer, (given, call) in enumerate(zip(teacher.attentions, calls, strict=True)):
        attentions = {name: model.attentions[layer] for name, model in models.items()}
        for name, (errors, ms) in race_layer(given, attentions, call, **PACE).items():
            rows.append({"layer": layer, "attention": name, "ms": ms, "output_error": errors.tolist()})
    return rows


# ------------------------------------------------------------------------------------------- inputs of some length


def of_length(inputs, n):
    """Those inputs that have at least n tokens, cut to n: token ids, vectors or `Sequences`.

    Examples
    --------
    >>> of_length(np.asarray([[4, 2, 0], [3, 0, 0]]), 2)
    array([[4, 2]])
    """
    check_count(n, "length", "advise", least=1)
    tokens = lengths(inputs)
    longest = inputs.shape[1] if tokens is None else int(tokens.max(initial=0))
    if n > longest:
        raise ValueError(f"advise: length is {n}, but the longest of the data has {longest} tokens")
    kept = inputs if tokens is None else inputs[tokens >= n]
    return kept.first(n) if isinstance(kept, Sequences) else kept[:, :n]


def some_of(inputs, tokens):
    """So many of the inputs, evenly spaced, that their plans fit into memory: 64 at most.

    Examples
    --------
    >>> len(some_of(np.zeros((100, 8, 8)), 17)), len(some_of(np.zeros((100, 1024, 2)), 1024))
    (64, 4)
    """
    most = min(max(SCORES // tokens**2, 1), 64, len(inputs))
    return inputs[np.linspace(0, len(inputs) - 1, most).astype(int)]
