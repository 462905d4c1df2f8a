"""Error against time with every rival: ASAP is on the front of long clouds, on sharp scores only if refined."""

from dataclasses import replace
from pathlib import Path

import teachers

from asap_ref import Attention, fit_amortizer
from asap_ref.calibration.omega import fitted_omega
from asap_ref.lab.competitors import MAP
from asap_ref.lab.layers_alone import race_layer
from asap_ref.lab.machine import machine
from asap_ref.lab.replacements import cut_short, from_initial_duals, geometric_mean, without_learning
from asap_ref.lab.runs import calibration_batches
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

CUTS = (1, 2, 3, 5, 7)
ONE_PASS = {"ASAP + one pass": 1.0, "ASAP + one pass at 1, 2 and 4": (1.0, 2.0, 4.0)}
SHARP, TOKENS = 20.0, 8192
TICKS = [digit * 10**power for power in range(-1, 4) for digit in (1, 2, 5)]  # ms
KINDS = {  # how a name begins: what is told of it, and colour and marker
    "softmax": ("softmax", "softmax", "s"),
    "dual-softmax": ("dual softmax", "black", "P"),
    "sinkhorn": ("Sinkhorn cut to T", "sinkhorn", "o"),
    "over-relaxed-softmax": ("over-relaxed, from softmax", "light", "^"),
    "over-relaxed-gaussian": ("over-relaxed, from the Gaussian dual", "sliced", "v"),
    "initial": ("a dual that is not learned", "key", "D"),
    "ASAP": ("ASAP, refined 0, 1, 2 times", "asap", "*"),
    "ASAP + one pass": ("ASAP + features of one pass", "warm", "X"),
}


def measure():
    """Time everybody on a layer of a teacher on clouds, and on sharp made-up scores, with their errors."""
    return {"fronts": {"clouds": of_clouds(64, 1024), "sharp": of_sharp(256, 1024)}, "machine": machine()}


def of_clouds(*lengths):
    """The last layer of a teacher on clouds, calibrated at 64 points."""
    run, data, model = teachers.teacher("clouds", 0)
    *_, calibration = teachers.by_layer(model, calibration_batches(run, data))
    learned = maps(run.teacher, calibration)
    tests = [run.test_inputs(data, n)[: max(2**18 // n**2, 1)] for n in lengths]
    *_, calls = teachers.by_layer(model, tests)
    return [front(run.teacher, learned, call) for call in calls]


def of_sharp(*lengths):
    """The benchmark's layer, of scores with a standard deviation of 20."""
    found = []
    for n in lengths:
        calibration = [teachers.made_up(n, SHARP, [seed]) for seed in range(100, 100 + TOKENS // n)]
        learned = maps(teachers.MADE_UP, calibration)
        found.append(front(teachers.MADE_UP, learned, teachers.made_up(n, SHARP, [0])))
    return found


def maps(settings, calibration):
    """ASAP without and with refining, and with features of one pass: {name: attention}."""
    batches, found = [(q, k) for q, k, *_ in calibration], {}
    for name, more in {"ASAP": {}, **{name: {"one_pass": t} for name, t in ONE_PASS.items()}}.items():
        once = fit_amortizer(batches, refine=1, **MAP, **more, **settings)
        twice = replace(once, refine=2)
        twice = replace(twice, omega=fitted_omega(twice, *batches[0]))
        for amortizer in (replace(once, refine=0), once, twice):
            told = f"{name}, refine = {amortizer.refine}" if amortizer.refine else name
            found[told] = Attention("asap", {"amortizer": amortizer})
    return found


def front(settings, learned, call):
    """Output error and milliseconds of everybody on one layer."""
    given = Attention("sinkhorn", settings)
    attentions = {"softmax": Attention("softmax"), "sinkhorn": given, **cut_short(given, CUTS)}
    attentions |= without_learning(given) | from_initial_duals(given) | learned
    found = race_layer(given, attentions, call, rounds=7, least=5, budget=2.0)
    rows = {name: {"error": geometric_mean(errors), "ms": ms} for name, (errors, ms) in found.items()}
    return {"n": call[0].shape[2], "sequences": len(call[0]), "heads": call[0].shape[1], "rows": rows}


# -------------------------------------------------------------------------------------------------- presentation


def on_the_front(rows):
    """Names that nobody beats in both error and time, by time."""
    names = sorted(rows, key=lambda name: rows[name]["ms"])
    return [name for i, name in enumerate(names) if all(rows[name]["error"] < rows[o]["error"] for o in names[:i])]


def kind(name):
    """The longest beginning of a name that KINDS has."""
    return max((start for start in KINDS if name.startswith(start)), key=len)


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "fronts.md"
    files.save_text(table, markdown(record))
    found = [(what, front) for what, fronts in record["fronts"].items() for front in fronts]
    fig, axes = presentation.subplots(2, 2, figsize=(10.5, 8.0))
    for axis, (what, front) in zip(axes.flat, found, strict=True):
        rows = front["rows"]
        for start, (told, colour, marker) in KINDS.items():
            points = [(rows[n]["ms"], rows[n]["error"]) for n in rows if kind(n) == start and rows[n]["error"] > 0]
            if points:
                axis.plot(
                    *zip(*sorted(points), strict=True), marker, color=presentation.COLOURS[colour], label=told
                )
        steps = [(rows[n]["ms"], rows[n]["error"]) for n in on_the_front(rows) if rows[n]["error"] > 0]
        axis.step(*zip(*steps, strict=True), where="post", color="black", lw=0.8, zorder=0)
        axis.axvline(rows["sinkhorn"]["ms"], ls="--", lw=1, color=presentation.COLOURS["sinkhorn"])
        title = {"clouds": "clouds", "sharp": "scores of deviation 20"}[what]
        axis.set(xlabel="ms", ylabel="output error", xscale="log", yscale="log")
        axis.set_title(f"{title}, {front['n']} tokens")
        times = [row["ms"] for row in rows.values()]
        axis.set_xticks([t for t in TICKS if min(times) <= t <= max(times)])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return [table, *presentation.save(fig, Path(folder) / "fronts")]


def markdown(record):
    """Write everybody's error and time, who is on the front, and what that says of maps."""
    parts = []
    for what, fronts in record["fronts"].items():
        title = {"clouds": "A trained layer on clouds", "sharp": "Scores of standard deviation 20"}[what]
        lines = [["attention"]]
        for front in fronts:
            lines[0] += [f"n = {front['n']}: output error", "ms", "/ softmax", "front"]
        for name in fronts[0]["rows"]:
            line = [name]
            for front in fronts:
                row = front["rows"][name]
                over = row["ms"] / front["rows"]["softmax"]["ms"]
                ahead = "yes" if name in on_the_front(front["rows"]) else ""
                line += [f"{row['error']:.3g}", f"{row['ms']:.2f}", f"{over:.2f}", ahead]
            lines.append(line)
        parts.append(f"{title}:\n\n{markdown_table(lines)}\n{verdict(what, fronts)}\n")
    made_on = record["machine"]
    return "\n".join(parts) + (
        "\nFront: nobody is nearer in as little time. The last layer of the teacher on clouds (T = 10, calibrated at "
        f"64 points), and the benchmark's layer (8 heads of 64, T = 20, calibrated on {TOKENS} tokens in sequences of "
        "that length); errors relative to the teacher's output, geometric means over heads; times: medians of "
        f"interleaved calls, while the machine had other work too, so that ratios tell more than milliseconds. "
        f"sinkhorn is the teacher itself. {made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )


def verdict(what, fronts):
    """Say whether a map is worth its time: which are on the front, and who is nearest in how much time."""
    told, nearest = [], []
    for front in fronts:
        rows = front["rows"]
        ahead = [name for name in on_the_front(rows) if name.startswith("ASAP")]
        rivals = [n for n in rows if not n.startswith("ASAP") and rows[n]["ms"] <= 1.02 * rows["ASAP"]["ms"]]
        best = min(rivals, key=lambda name: rows[name]["error"])
        quick = [n for n in rows if n.startswith("ASAP") and rows[n]["ms"] < rows["sinkhorn"]["ms"]]
        near = min(quick, key=lambda name: rows[name]["error"], default=None)
        nearest += [rows[near]["error"]] if quick else []
        of_maps = (
            f"the nearest map in less has {rows[near]['error']:.3g} ({near})" if quick else "no map takes less"
        )
        told.append(
            f"At {front['n']} tokens maps on the front: {'; '.join(ahead) or 'none'}. ASAP has "
            f"{rows['ASAP']['error']:.3g}, the nearest rival in no more time {rows[best]['error']:.3g} ({best}). The "
            f"teacher takes {rows['sinkhorn']['ms'] / rows['softmax']['ms']:.1f} times softmax, {of_maps}."
        )
    if what == "sharp" and nearest:
        told.append(
            f"So on scores as sharp as these a map helps as a start for iterations, and not by itself: none comes "
            f"nearer than {min(nearest):.2g} in less than the teacher's time. Who needs some per cent should run the "
            "teacher."
        )
    return " ".join(told)
