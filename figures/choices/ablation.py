"""Quadratic features and chosen slices buy more than slices by the dozen; one refining iteration buys as much again."""

from pathlib import Path

import numpy as np

from asap_ref import Attention, attention_scores, sinkhorn, transport_plan
from asap_ref.lab.experiments import experiment
from asap_ref.lab.machine import machine
from asap_ref.lab.replacements import geometric_mean
from asap_ref.lab.runs import trained, whole_batches
from asap_ref.model.compilation import compile_model
from asap_ref.model.measures import column_distance, output_error, plan_of
from asap_ref.model.recording import record
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
CONVERGED = 1000
FEATURES = {
    "slices": {"cumulants": False, "quadratic": 0},
    "slices + cumulants": {"cumulants": True, "quadratic": 0},
    "slices + cumulants + quadratic": {"cumulants": True, "quadratic": 12},
    "chosen slices + cumulants + quadratic": {"cumulants": True, "quadratic": 12, "candidates": 64},
}
PLAINEST = {"candidates": None, "moments": 0, "ridge": 1e-4}
SLICES = (4, 16, 32)
TRUNCATED = (1, 2, 3, 5, 8)
COLUMNS = 0.05  # column sums within that count as met
BAR = 0.05  # for the output error with 16 slices


def variants():
    """Name, what is told of it, and the settings of compile_model."""
    found = []
    for features, settings in FEATURES.items():
        for L in SLICES:
            found.append((features, "regression", L, 0, settings))
    best = list(FEATURES)[-1]
    return [*found, (best, "regression", 16, 1, FEATURES[best])]


def measure():
    """Train a teacher for each seed, compile it in every way, and compare on the test images."""
    return {"seeds": [of_seed(seed) for seed in SEEDS], "machine": machine()}


def of_seed(seed):
    """Errors of each variant of one seed, one a layer and head."""
    run = experiment("digits", seed=seed)
    data = run.load()
    teacher = trained(run, data, Attention("sinkhorn", run.teacher), label=f"seed {seed}")
    calls, batches = record(teacher, data.test_inputs), whole_batches(data.train_inputs)
    converged, iterations = references(calls, run.teacher["epsilon"])
    rows = []
    for features, objective, L, refine, settings in variants():
        compiled, _ = compile_model(
            teacher, batches, n_slices=L, objective=objective, refine=refine, seed=seed, **(PLAINEST | settings)
        )
        told = {"features": features, "objective": objective, "slices": L, "refine": refine}
        rows.append(told | errors(teacher, compiled.attentions, calls, converged))
    for T in (*TRUNCATED, run.teacher["n_iter"]):
        cut = (Attention("sinkhorn", {**run.teacher, "n_iter": T}),) * len(calls)
        rows.append({"truncated": T} | errors(teacher, cut, calls, converged))
    return {
        "seed": seed,
        "teacher": run.teacher,
        "iterations": iterations,
        "rows": rows,
    }


def references(calls, epsilon):
    """Converged plans, a layer each, and the iterations each head needs for column sums within 0.05."""
    plans, needed = [], []
    for q, k, *_ in calls:
        S = attention_scores(q, k).astype(np.float64)
        plans.append(transport_plan(S, sinkhorn(S, n_iter=CONVERGED, epsilon=epsilon), epsilon=epsilon))
        first, duals = {}, sinkhorn(S, n_iter=0, epsilon=epsilon)
        for t in range(CONVERGED):
            columns = np.abs(transport_plan(S, duals, epsilon=epsilon).sum(-2) - 1).max(-1).mean(0)
            for h in np.flatnonzero(columns <= COLUMNS):
                first.setdefault(int(h), t)
            if len(first) == S.shape[1]:
                break
            duals = sinkhorn(S, n_iter=1, init=duals.query, epsilon=epsilon)
        needed.append([first.get(h, CONVERGED) for h in range(S.shape[1])])
    return plans, needed


def errors(teacher, attentions, calls, converged):
    """Output error, column error, and relative distance to the converged plan: (layers, heads) lists."""
    found = {"output_error": [], "column_error": [], "to_converged": []}
    for expected, attention, call, P in zip(teacher.attentions, attentions, calls, converged, strict=True):
        plan = plan_of(attention, *call[:2])
        distance = np.sqrt(np.sum((plan - P) ** 2, (0, 2, 3)) / np.sum(P**2, (0, 2, 3)))
        found["output_error"].append(output_error(expected, attention, [call]).tolist())
        found["column_error"].append(column_distance(plan.sum(-2), plan.shape[-2]).mean(0).tolist())
        found["to_converged"].append(distance.tolist())
    return found


# ---------------------------------------------------------------------------------------------------- presentation


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "ablation.md"
    files.save_text(table, markdown(record))
    fig, (left, right) = presentation.subplots(1, 2, figsize=(11.0, 4.2))
    colours = ("softmax", "light", "warm", "asap")
    for name, colour in zip(FEATURES, colours, strict=True):
        found = [_value(record, (name, "regression", L, 0), "output_error") for L in SLICES]
        left.plot(SLICES, found, marker="o", color=presentation.COLOURS[colour], label=name)
    for T in (3, 5, 8):
        error = _value(record, T, "output_error")
        left.axhline(error, ls="--", lw=1, color=presentation.COLOURS["sinkhorn"])
        left.annotate(f"Sinkhorn, T = {T}", (8, error), ha="center", va="bottom", fontsize=8)
    left.set(xlabel="slices L", ylabel="attention output error", title="Features", xscale="log", yscale="log")
    left.set_xticks(SLICES, [str(L) for L in SLICES])
    left.minorticks_off()
    left.legend(fontsize=8)
    needed = np.ravel([seed["iterations"] for seed in record["seeds"]])
    T = record["seeds"][0]["teacher"]["n_iter"]
    for label, key, colour, marker in (
        (f"teacher, T = {T}", T, "sinkhorn", "o"),
        ("ASAP", (BEST, "regression", 16, 0), "asap", "*"),
    ):
        found = np.ravel([_row(seed, key)["to_converged"] for seed in record["seeds"]])
        right.semilogy(needed, found, marker, color=presentation.COLOURS[colour], label=label)
    right.set(
        xlabel=f"iterations the head needs for columns within {COLUMNS:g}",
        ylabel="distance to the converged plan, relative",
        title="Head by head",
    )
    right.legend(fontsize=8)
    return [table, *presentation.save(fig, Path(folder) / "ablation")]


def markdown(record):
    """Write errors of all variants, the bars, and the calibrations on easy and hard heads."""
    rows = [["features", "objective", "L", "refine", *MEASURES.values()]]
    for features, objective, L, refine, _ in variants():
        key = (features, objective, L, refine)
        rows.append([features, objective, str(L), str(refine), *(_told(record, key, m) for m in MEASURES)])
    T = record["seeds"][0]["teacher"]["n_iter"]
    for t in (*TRUNCATED, T):
        name = f"Sinkhorn, T = {t}" + (" (teacher)" if t == T else "")
        rows.append([name, "", "", "", "", *(_told(record, t, m) for m in MEASURES)])
    seeds, made_on = ", ".join(str(seed["seed"]) for seed in record["seeds"]), record["machine"]
    return (
        f"{markdown_table(rows)}\n{_bars(record)}\n{_heads(record)}\n"
        f"Digits, seeds {seeds}, test images; attention output error relative to the teacher's output and distance to "
        f"the plan of {CONVERGED} iterations: geometric means over heads; column error: mean over heads; each the mean "
        f"over seeds with their standard deviation. {made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )


def _bars(record):
    told = []
    for name in list(FEATURES)[1:]:
        key = (name, "regression", 16, 0)
        error = _value(record, key, "output_error")
        layers = [
            _mean("output_error", _row(seed, key)["output_error"][layer])
            < _mean("output_error", _row(seed, 5)["output_error"][layer])
            for seed in record["seeds"]
            for layer in range(len(seed["iterations"]))
        ]
        met = "met" if error <= BAR else "missed"
        told.append(
            f"- {name}, 16 slices: output error {error:.3f}, the bar of {BAR} is {met}; "
            f"nearer to the teacher than five iterations in {sum(layers)} of {len(layers)} layers.\n"
        )
    return "".join(told)


def _heads(record):
    """ASAP beside the teacher, on the easier and the harder half of the heads."""
    needed = np.ravel([seed["iterations"] for seed in record["seeds"]])
    T, middle = record["seeds"][0]["teacher"]["n_iter"], int(np.median(needed))
    rows = [["", *(f"{m}, {half}" for m in ("column error", "distance to the converged plan") for half in HALVES)]]
    keys = {"teacher": T, "ASAP": (BEST, "regression", 16, 0)}
    for name, key in keys.items():
        cells = []
        for measure in ("column_error", "to_converged"):
            found = np.ravel([_row(seed, key)[measure] for seed in record["seeds"]])
            cells += [f"{_mean(measure, found[half]):.3f}" for half in (needed <= middle, needed > middle)]
        rows.append([name, *cells])
    return (
        f"{markdown_table(rows)}\nEasy heads need at most {middle} iterations for columns within {COLUMNS:g}, hard "
        f"ones more, up to {needed.max()}.\n"
    )


BEST = list(FEATURES)[-1]
HALVES = ("easy heads", "hard heads")
MEASURES = {
    "output_error": "output error",
    "column_error": "column error",
    "to_converged": "distance to the converged plan",
}


def _row(seed, key):
    """The row of a truncation (an integer) or of a variant."""
    names = ("features", "objective", "slices", "refine")
    return next(
        r for r in seed["rows"] if (r.get("truncated") == key or tuple(r.get(name) for name in names) == key)
    )


def _mean(measure, values):
    """Over heads: geometric for what is relative, so that no head hides the others."""
    values = np.asarray(values)
    if measure == "column_error" or not values.all():
        return float(values.mean())
    return geometric_mean(values)


def _value(record, key, measure):
    return float(np.mean([_mean(measure, _row(seed, key)[measure]) for seed in record["seeds"]]))


def _told(record, key, measure):
    found = [_mean(measure, _row(seed, key)[measure]) for seed in record["seeds"]]
    return f"{np.mean(found):.3f} ± {np.std(found):.3f}"
