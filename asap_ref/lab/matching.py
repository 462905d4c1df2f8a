"""The matching task: each point of a cloud is to find itself in a moved copy, and two marginals decide.

Two matchers are trained alike, one through a row softmax and one through Sinkhorn. Each is closed by the attention it
was trained with and by others, nothing retrained; the Sinkhorn one is compiled with ASAP as well. Everything goes into
one folder (matching_report.py), as in reproduce.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np

from asap_ref.lab.clouds import load_clouds
from asap_ref.lab.datasets import load_digits
from asap_ref.lab.pairs import BEND, draw_pairs
from asap_ref.lab.stopwatch import interleaved
from asap_ref.model.compilation import compile_model
from asap_ref.model.matching import Matcher, MatcherArchitecture
from asap_ref.model.measures import plan_of
from asap_ref.model.mechanism import Attention
from asap_ref.model.optimiser import TrainingSettings, descend
from asap_ref.model.partners import partners_of
from asap_ref.model.recording import record
from asap_ref.support.arrays import array_module, to_numpy

CHUNK = 40  # pairs that go through a matcher at a time
TRAINED = ("softmax", "sinkhorn")
VARIANTS = {  # of ASAP, by settings of compile_model: each makes one pass over the scores before the closing one
    "asap, refine 1": {"refine": 1},
    "asap, one pass": {"one_pass": (1.0, 2.0)},
}
NAMES = {"softmax": "softmax", "sinkhorn": "Sinkhorn", "asap": "ASAP"}


@dataclass(frozen=True)
class MatchingRun:
    """What the task depends on. Learning rate and sharpness were searched for each of the two (figures/claims)."""

    points: int = 48
    bend: float = BEND
    judged: tuple[int, ...] = (48, 128)
    n_iter: int = 10
    truncations: tuple[int, ...] = (1, 2, 3, 5)
    relaxed: tuple[int, ...] = (1, 2)  # over-relaxed iterations before the closing one
    omega: float = 1.7  # how far they go, as everywhere in the lab (replacements.py)
    architecture: MatcherArchitecture = field(default_factory=MatcherArchitecture)
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=30, learning_rate=2e-3, weight_decay=0.01)
    )
    searched: dict = field(
        default_factory=lambda: {
            "softmax": {"learning_rate": 16e-3, "sharpness": 1.0},
            "sinkhorn": {"learning_rate": 8e-3, "sharpness": 3.0},
        }
    )
    compilation: dict = field(
        default_factory=lambda: {
            "n_slices": 16,
            "candidates": 64,
            "cumulants": True,
            "quadratic": 8,
            "ridge": 1e-3,
        }
    )
    calibrate_on: int = 512
    test: int = 360
    rounds: int = 5
    backend: str = "numpy"

    def test_pairs(self, n):
        """How many pairs of n points are judged: as many points in all as ``test`` pairs of training length."""
        return max(1, self.test * self.points // n)

    def closing(self, name):
        """The attention that a matcher is trained through: Sinkhorn's, without iterations for softmax."""
        return Attention("sinkhorn", {"n_iter": 0 if name == "softmax" else self.n_iter})


def matching_run(*, seed=0, epochs=None, n_iter=None, slices=None, backend="numpy"):
    """Describe a run in which some settings differ from the task's own; None keeps them.

    Examples
    --------
    >>> matching_run(epochs=3).training.epochs, matching_run(seed=1).n_iter
    (3, 10)
    """
    run = MatchingRun(backend=backend)
    return replace(
        run,
        n_iter=run.n_iter if n_iter is None else n_iter,
        training=replace(run.training, seed=seed, epochs=run.training.epochs if epochs is None else epochs),
        compilation=run.compilation | ({} if slices is None else {"n_slices": slices}),
    )


# ------------------------------------------------------------------------------------------------------ training


def train_matcher(run, name, *, learning_rate=None, sharpness=None, label=None, checkpoint=None, resume=False):
    """Train a matcher on fresh pairs of clouds: through "softmax" or through "sinkhorn".

    Learning rate and sharpness are those of the search, unless given.
    """
    found = {"learning_rate": run.training.learning_rate, "sharpness": run.architecture.sharpness}
    found |= run.searched[name] | {
        key: value
        for key, value in (("learning_rate", learning_rate), ("sharpness", sharpness))
        if value is not None
    }
    architecture = replace(run.architecture, sharpness=found["sharpness"])
    settings = replace(run.training, learning_rate=found["learning_rate"])
    ink = load_clouds(1).train_inputs
    xp = array_module(run.backend)
    model = Matcher.create(architecture, run.closing(name), seed=settings.seed, xp=xp)

    def batches(rng):
        order = rng.permutation(len(ink))
        for i in range(0, len(order), settings.batch_size):
            picked = order[i : i + settings.batch_size]
            pairs, partners = draw_pairs(ink[picked], run.points, rng, bend=run.bend)
            yield (model.place(pairs), xp.asarray(partners)), len(picked)

    return descend(
        model,
        batches,
        lambda model, batch: model.loss_and_gradients(*batch),
        settings,
        steps=math.ceil(len(ink) / settings.batch_size),
        made_by={
            "matcher": asdict(architecture),
            "points": run.points,
            "bend": run.bend,
            "attention": repr(model.attentions),
        },
        checkpoint=checkpoint,
        resume=resume,
        label=label,
    )[0]


# ------------------------------------------------------------------------------------------------------ what closes


def closings(run, models):
    """Matchers of the table by (trained through, closed by), the teacher first among those of its parameters.

    ``models`` are "softmax" and "sinkhorn", as they were trained, and by other names the compiled ones.
    """
    teacher, compiled = run.closing("sinkhorn"), {k: v for k, v in models.items() if k not in TRAINED}
    found = {
        ("softmax", "softmax"): run.closing("softmax"),
        ("softmax", "dual-softmax"): Attention("dual-softmax"),
        ("softmax", f"sinkhorn-{run.n_iter}"): teacher,
        ("softmax", "sinkhorn-50"): Attention("sinkhorn", {"n_iter": 50}),
        ("sinkhorn", "sinkhorn"): teacher,
        ("sinkhorn", "sinkhorn-50"): Attention("sinkhorn", {"n_iter": 50}),
        ("sinkhorn", "softmax"): run.closing("softmax"),
        ("sinkhorn", "dual-softmax"): Attention("dual-softmax"),
        **{("sinkhorn", f"sinkhorn-{t}"): Attention("sinkhorn", {"n_iter": t}) for t in run.truncations},
        **{
            ("sinkhorn", f"over-relaxed-{t}"): Attention("over-relaxed", {"n_iter": t, "omega": run.omega})
            for t in run.relaxed
        },
        ("sinkhorn", "initial-gaussian"): Attention("initial", {"start": "gaussian"}),
    }
    return {pair: models[pair[0]].with_attention(attention) for pair, attention in found.items()} | {
        ("sinkhorn", name): model for name, model in compiled.items()
    }


def compile_matcher(run, teacher, **changed):
    """Compile the teacher on fresh pairs of the length it was trained on."""
    ink = load_clouds(1).train_inputs[: run.calibrate_on]
    pairs, _ = draw_pairs(ink, run.points, np.random.default_rng([run.training.seed, run.points]), bend=run.bend)
    return compile_model(
        teacher, [pairs[i : i + 128] for i in range(0, len(pairs), 128)], **run.compilation | changed
    )


# ------------------------------------------------------------------------------------------------------ judging


def judged_pairs(run, n):
    """The pairs of that length on which all are judged: the same at every call."""
    ink = (load_digits().test_inputs[: run.test_pairs(n)] + 1) / 2
    return draw_pairs(ink, n, np.random.default_rng([7, n]), bend=run.bend)


def plans(model, pairs):
    """Plans of all pairs, NumPy (B, n, m), some pairs at a time."""
    parts = [to_numpy(model(model.place(pairs[i : i + CHUNK]))) for i in range(0, len(pairs), CHUNK)]
    return np.concatenate(parts)


def closing_calls(model, pairs):
    """Queries and keys of the closing attention, which are the same whatever closes: a list of some pairs each."""
    return [record(model, pairs[i : i + CHUNK])[0][:2] for i in range(0, len(pairs), CHUNK)]


def judge(matchers, run, n):
    """Rows of the table at n points, one for each of the matchers; timed where the run has rounds."""
    pairs, partners = judged_pairs(run, n)
    times = _times(matchers, pairs[:CHUNK], run.rounds) if run.rounds else {}
    calls, teachers, rows = {}, {}, []
    for (trained, closed), model in matchers.items():
        if trained not in calls:
            calls[trained] = closing_calls(model, pairs)
        plan = np.concatenate([plan_of(model.attentions[0], q, k)[:, 0] for q, k in calls[trained]])
        teachers.setdefault(trained, plan)  # the first of its parameters is closed as it was trained
        rows.append(
            {
                "trained": trained,
                "attention": closed,
                "n": n,
                **measures(plan, pairs, partners),
                "plan_error": float(np.linalg.norm(plan - teachers[trained]) / np.linalg.norm(teachers[trained])),
                **({"ms": times[trained, closed]} if times else {}),
            }
        )
    return rows


def _times(matchers, pairs, rounds):
    """Milliseconds of a forward pass of each of the matchers."""
    placed = next(iter(matchers.values())).place(pairs)
    calls = {name: partial(_forward, model, placed) for name, model in matchers.items()}
    found = interleaved(calls, rounds=rounds, budget=math.inf)
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in found.items()}


def measures(plan, pairs, partners):
    """What a plan says of pairs whose partners are known: shares, and a mean distance.

    Right: the largest entry of a row is at its partner. Distinct: how many different partners the rows name, a point.
    Displacement: from a point's partner to the mean of the second cloud under its row.
    """
    named = partners_of(plan)
    true = np.take_along_axis(pairs.second, partners[..., None], axis=1)
    return {
        "right": float(np.mean(named == partners)),
        "distinct": float(np.mean([len(np.unique(row)) / len(row) for row in named])),
        "displacement": float(np.mean(np.linalg.norm(plan @ pairs.second - true, axis=-1))),
        "column_error": float(np.mean(np.abs(plan.sum(axis=1) - 1))),
    }


def _forward(model, pairs):
    return to_numpy(model(pairs))  # waits for the device
