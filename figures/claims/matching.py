"""In matching two marginals matter; ASAP is worth one iteration there, with a refining iteration two or three."""

from dataclasses import replace

import numpy as np

from asap_ref import sinkhorn, transport_plan
from asap_ref.lab.clouds import load_clouds
from asap_ref.lab.machine import machine
from asap_ref.lab.matching import (
    TRAINED,
    VARIANTS,
    MatchingRun,
    closings,
    compile_matcher,
    judge,
    matching_run,
    measures,
    plans,
    train_matcher,
)
from asap_ref.lab.matching_report import COLUMNS, NOT_TIMED, draw_picture, drawn_pair
from asap_ref.lab.pairs import draw_pairs
from asap_ref.lab.stopwatch import timed
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
START = {"learning_rate": 4e-3, "sharpness": 1.0}  # of the search
FACTORS = {"learning_rate": 2.0, "sharpness": 3.0}  # to its next neighbours
SEARCH_EPOCHS = 10
SEARCHED_ON = 400  # pairs of training images in new draws; the test images are not used for choosing
BENDS = (0.0, 0.1, 0.2, 0.3)
KNOWN = 0.05, 100  # least spread of what a known motion leaves, as the noise; pairs


def measure():
    """Search the settings of both alike, train with three seeds, judge all that may close a matcher."""
    searches = {name: search(name) for name in TRAINED}
    best = {name: found["best"] for name, found in searches.items()}
    return {
        "search": searches,
        "bends": [{"bend": bend, **known_motion(replace(MatchingRun(), bend=bend))} for bend in BENDS],
        "seeds": [of_seed(seed, best) for seed in SEEDS],
        "machine": machine(),
    }


# ------------------------------------------------------------------------------------------------------- the search


def search(name):
    """Climb to learning rate and sharpness whose neighbours on both sides are no better: neither is at an edge."""
    tried, at = {}, START

    def right(setting):
        key = tuple(setting.values())
        if key not in tried:
            tried[key] = _right_after_some_epochs(name, **setting)
        return tried[key]

    before = None
    while at != before:
        before = at
        for key, factor in FACTORS.items():
            at = _climbed(at, key, factor, right)
    rows = [{**dict(zip(START, key, strict=True)), "right": found} for key, found in sorted(tried.items())]
    return {"tried": rows, "best": at, "right": right(at)}


def _climbed(at, key, factor, right):
    """Multiply or divide one setting as long as that helps."""
    while True:
        around = [{**at, key: float(f"{at[key] * step:.6g}")} for step in (1.0, factor, 1 / factor)]
        best = max(around, key=right)
        if best == at:
            return at
        at = best


def _right_after_some_epochs(name, **settings):
    """Share of right matches of a matcher trained for some epochs, on training images that it has not seen so."""
    run = MatchingRun()
    run = replace(run, training=replace(run.training, epochs=SEARCH_EPOCHS))
    model = train_matcher(run, name, label=f"{name}, {settings}", **settings)
    ink = load_clouds(1).train_inputs[:SEARCHED_ON]
    pairs, partners = draw_pairs(ink, run.points, np.random.default_rng(11), bend=run.bend)
    return measures(plans(model, pairs), pairs, partners)["right"]


# ---------------------------------------------------------------------------- what a second marginal is worth, and why


def known_motion(run):
    """Right matches where rotation, shear and shift are undone for you: by distance alone, and by Sinkhorn's plan.

    Scores are those of Gaussian noise of the size of what is left.
    """
    least, count = KNOWN
    pairs, partners = draw_pairs(
        load_clouds(1).train_inputs[:count], run.points, np.random.default_rng(12), bend=run.bend
    )
    found = {name: [] for name in TRAINED}
    for first, second, partner in zip(pairs.first, pairs.second, partners, strict=True):
        affine = np.concatenate([first, np.ones_like(first[:, :1])], axis=1).astype(np.float64)
        moved = affine @ np.linalg.lstsq(affine, second[partner], rcond=None)[0]
        left = max(np.std(second[partner] - moved), least)
        scores = -np.sum((moved[:, None] - second) ** 2, axis=-1) / (2 * left**2)
        for name in TRAINED:
            plan = transport_plan(scores, sinkhorn(scores, n_iter=0 if name == "softmax" else run.n_iter))
            found[name].append(np.mean(np.argmax(plan, axis=-1) == partner))
    return {name: float(np.mean(shares)) for name, shares in found.items()}


# -------------------------------------------------------------------------------------------------------- the seeds


def of_seed(seed, best):
    """Train both, compile, and judge; the first seed keeps what its picture needs."""
    run = replace(matching_run(seed=seed), searched=best, rounds=0)  # untimed: times are in the task's own report
    models, seconds = {}, {}
    for name in TRAINED:
        with timed(seconds, name):
            models[name] = train_matcher(run, name, label=f"seed {seed}, {name}")
    with timed(seconds, "compile"):
        models["asap"], calibration = compile_matcher(run, models["sinkhorn"])
    variants = {name: compile_matcher(run, models["sinkhorn"], **more)[0] for name, more in VARIANTS.items()}
    matchers = closings(run, models | variants)
    found = {
        "seed": seed,
        "rows": [row for n in run.judged for row in judge(matchers, run, n)],
        "r_squared": calibration[0]["r_squared"],
        "seconds": seconds,
    }
    if seed == SEEDS[0]:
        found["picture"] = drawn_pair(models, run)
    return found


# --------------------------------------------------------------------------------------------------------- drawing


def draw(record, folder):
    """Write matching.md and the picture of one pair, matched three ways."""
    table = folder / "matching.md"
    files.save_text(table, markdown(record))
    picture = draw_picture(record["seeds"][0]["picture"])
    return [table, *presentation.save(picture, folder / "matching")]


def markdown(record):
    """Write the table over the seeds, what bends do, and what was searched."""
    seeds, run, made_on = record["seeds"], MatchingRun(), record["machine"]
    lines = [[COLUMNS[key][0] for key in NOT_TIMED]]
    for i, row in enumerate(seeds[0]["rows"]):
        lines.append([row["trained"], row["attention"], str(row["n"])])
        lines[-1] += [_spread([seed["rows"][i][key] for seed in seeds], COLUMNS[key][1]) for key in NOT_TIMED[3:]]
    seconds = {name: np.mean([seed["seconds"][name] for seed in seeds]) for name in seeds[0]["seconds"]}
    explained = ", ".join(f"{np.mean(seed['r_squared']):.2f}" for seed in seeds)
    return (
        f"{_said(seeds)}\n\n{markdown_table(lines)}\n"
        f"Clouds of {run.points} points and their moved copies, trained for {run.training.epochs} epochs; judged on "
        f"{_counts(run)} pairs; mean and standard deviation over seeds {', '.join(map(str, SEEDS))}. Right: the "
        "largest entry of a row is at its true partner. Distinct: how many different partners the rows name, a point. "
        "Displacement: from a point's partner to the mean of the second cloud under its row. Plan error: against the "
        f"plan of the attention the matcher was trained through. Over-relaxed: by {run.omega}. R² of the dual that "
        f"ASAP explains: {explained}. Seconds of training softmax, Sinkhorn, and of compiling: "
        f"{', '.join(f'{value:.0f}' for value in seconds.values())}, beside other work. {made_on['processor']}, NumPy "
        f"{made_on['numpy']}.\n\n"
        f"## What the second marginal is worth\n\n{_table_of_bends(record['bends'])}\n"
        "Right matches where the motion is known, against the bend of the copies (standard deviation of the smooth "
        "field; clouds have about unit size): rotation, shear and shift are undone by least squares at the true "
        "partners, and scores are minus squared distances over twice the variance of what is left. A copy that is not "
        "bent leaves a second marginal little to say once its motion is undone; a bend cannot be undone for one cloud "
        "alone, near points share it, and duals take it up. "
        f"{_leads(record)}\n\n"
        f"## The search\n\n{_table_of_search(record['search'])}\n"
        f"Right matches after {SEARCH_EPOCHS} epochs on new draws of training images. Learning rate and sharpness (a "
        "factor on the scores at the start, which training changes: a temperature) were climbed for both alike until "
        "both neighbours of each were no better; the best is bold.\n"
    )


def _counts(run):
    return " and ".join(f"{run.test_pairs(n)}" for n in run.judged)


def _spread(values, form):
    return f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}"


_LIMITS = "What else was tried for the map: [matching_limits](../choices/matching_limits.md)."


def _said(seeds):
    """Write the task, and the claim in numbers: the two, and how many matches are right for each of the teacher's."""
    of = [{(row["trained"], row["attention"], row["n"]): row["right"] for row in seed["rows"]} for seed in seeds]
    n = MatchingRun.points
    lead = [_lead(seed["rows"]) for seed in seeds]
    kept = {
        name: _spread([rows["sinkhorn", name, n] / rows["sinkhorn", "sinkhorn", n] for rows in of], ".1%")
        for name in ("asap", *VARIANTS, "sinkhorn-1", "sinkhorn-2", "over-relaxed-1")
    }
    added = [rows["softmax", "sinkhorn-50", n] for rows in of]
    through = [rows["sinkhorn", "sinkhorn-50", n] for rows in of]
    return (
        "Each point of a cloud is to find itself in a moved, bent and shuffled copy. "
        f"At {n} points training through two marginals gets {100 * np.mean(lead):.1f} ± "
        f"{100 * np.std(lead, ddof=1):.1f} points more right than through one. It is the closing that counts: closed "
        f"by 50 iterations, the matcher trained through softmax gets {_spread(added, '.1%')} right, and the one "
        f"trained through Sinkhorn {_spread(through, '.1%')}. Beside the number of the teacher's right matches ASAP "
        f"has {kept['asap']}, as many as the teacher cut to one iteration, {kept['sinkhorn-1']}; with one refining "
        f"iteration {kept['asap, refine 1']}, with features of one pass over the scores {kept['asap, one pass']}; two "
        f"iterations {kept['sinkhorn-2']}, one over-relaxed iteration and the closing one {kept['over-relaxed-1']}. "
        "Dual softmax only closes here, where LoFTR trains through it, and no match is checked from both sides. "
        f"{_LIMITS}"
    )


def _leads(record):
    """Write how the lead of the second marginal falls with tuning and with training."""
    early = {
        name: {(row["learning_rate"], row["sharpness"]): row["right"] for row in found["tried"]}
        for name, found in record["search"].items()
    }
    slow = min(set(early["softmax"]) & set(early["sinkhorn"]))  # the least learning rate that both were tried at
    leads = [
        early["sinkhorn"][slow] - early["softmax"][slow],
        record["search"]["sinkhorn"]["right"] - record["search"]["softmax"]["right"],
        np.mean([_lead(seed["rows"]) for seed in record["seeds"]]),
        *(row["sinkhorn"] - row["softmax"] for row in record["bends"] if row["bend"] == MatchingRun.bend),
    ]
    slowly, tuned, whole, promised = (f"{100 * lead:.1f}" for lead in leads)
    return (
        f"Of the {promised} points that the second marginal is worth at a bend of {MatchingRun.bend:g} trained "
        f"matchers show {whole}, and the better both are trained the less: {slowly} points after {SEARCH_EPOCHS} "
        f"epochs at learning rate {slow[0]:g} and sharpness {slow[1]:g}, {tuned} at the best settings of each, and "
        f"{whole} after {MatchingRun().training.epochs} epochs, the mean of all seeds."
    )


def _lead(rows):
    """By how much more is right through Sinkhorn than through softmax, each closed as trained, at the least n."""
    right = {(row["trained"], row["attention"]): row["right"] for row in reversed(rows)}
    return right["sinkhorn", "sinkhorn"] - right["softmax", "softmax"]


def _table_of_bends(bends):
    lines = [["bend", "softmax", "Sinkhorn", "lead"]]
    for row in bends:
        lead = 100 * (row["sinkhorn"] - row["softmax"])
        lines.append([f"{row['bend']:g}", f"{row['softmax']:.1%}", f"{row['sinkhorn']:.1%}", f"{lead:.1f} points"])
    return markdown_table(lines)


def _table_of_search(searches):
    lines = [["trained through", *(key.replace("_", " ") for key in START), "right"]]
    for name, found in searches.items():
        for row in found["tried"]:
            cells = [name, f"{row['learning_rate']:g}", f"{row['sharpness']:g}", f"{row['right']:.1%}"]
            best = all(row[key] == found["best"][key] for key in START)
            lines.append([f"**{cell}**" for cell in cells] if best else cells)
    return markdown_table(lines)
