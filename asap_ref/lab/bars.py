"""Where the benchmark wants to be: each bar, read off a record of benchmark.py, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from asap_ref.lab.stopwatch import ratio
from asap_ref.support.tables import markdown_table

ASAP, REFINED = "ASAP", "ASAP, refine = 1"
LOG, SCALING, TILES = "Sinkhorn, log domain", "Sinkhorn, scaling form", "Sinkhorn, in tiles"
CUT = ("Sinkhorn, T =", "Sinkhorn over-relaxed")  # the teacher cut short, plainly and at its best
TORCH_LOG, SDPA = "torch Sinkhorn, log domain", "torch softmax, fused (SDPA)"
FROM_DUAL = "ASAP from a given dual"
TEACHER = "the teacher's forward pass"
MIB = 2**20


@dataclass(frozen=True)
class Bar:
    """One line of the table: what is compared, the bound, and how to read it off a record."""

    work: str
    sense: str  # "at most" or "at least"
    bound: float
    read: Callable  # record -> (value, low, high), value, or None if it was not measured
    unit: str = ""

    def met(self, value):
        """Say whether a value is on the right side."""
        return value <= self.bound if self.sense == "at most" else value >= self.bound

    def verdict(self, value, spread=None):
        """Say "met" or "missed", or that the spread holds both."""
        if self.met(value):
            return "met"
        return "missed, within the spread" if spread and any(map(self.met, spread)) else "missed"


def compared(section, n, slow, fast, kind=None):
    """Reader of a ratio of times: in one race, within rounds."""

    def read(record):
        for race in record.get(section, []):
            if race["n"] == n and race.get("kind") == kind:
                times = {row["name"]: row["seconds"] for row in race["rows"]}
                return ratio(times[slow], times[fast]) if slow in times and fast in times else None
        return None

    return read


def frozen(n, slow, fast):
    """Reader of a ratio on the frozen layer."""
    return compared("frozen", n, slow, fast, kind="recorded-like")


def compiled(slow, fast):
    """Reader of a ratio of times in the section of calibration."""

    def read(record):
        times = {row["name"]: row["seconds"] for row in record.get("compile", {}).get("rows", [])}
        return ratio(times[slow], times[fast]) if times else None

    return read


def memory(record, what, name, n):
    """Bytes measured for one, or None."""
    found = [r["bytes"] for r in record.get("memory", []) if (r["what"], r["name"], r["n"]) == (what, name, n)]
    return found[0] if found else None


def _memory_of_steps(record):
    theirs, own = memory(record, "training", TORCH_LOG, 512), memory(record, "training", SCALING, 512)
    return theirs / own if theirs and own else None


def _memory_of_asap(record):
    found = memory(record, "forward", ASAP, 16384)
    return None if found is None else found / MIB


NOT_JUDGED = "The bars are for NumPy on two cores, so that none is judged here: the times stand for themselves.\n"
BARS = (
    Bar("ASAP / softmax, both ours, n = 1024", "at most", 1.10, frozen(1024, ASAP, "softmax")),
    Bar("ASAP / softmax, both ours, n = 4096", "at most", 1.0, frozen(4096, ASAP, "softmax")),
    Bar("ASAP with refine = 1 / softmax, n = 1024", "at most", 1.6, frozen(1024, REFINED, "softmax")),
    Bar(
        "ASAP / floor (product, exp, product), n = 1024",
        "at most",
        1.30,
        frozen(1024, ASAP, "product, exp, product"),
    ),
    Bar("ASAP / torch SDPA softmax, n = 1024", "at most", 1.8, frozen(1024, ASAP, SDPA)),
    Bar("log-domain Sinkhorn / ASAP, ours, n = 1024", "at least", 40, frozen(1024, LOG, ASAP)),
    Bar("log-domain Sinkhorn of torch / ASAP, n = 1024", "at least", 40, frozen(1024, TORCH_LOG, ASAP)),
    Bar("scaling Sinkhorn / ASAP, n = 1024", "at least", 1.7, frozen(1024, SCALING, ASAP)),
    Bar("scaling Sinkhorn / ASAP, n = 4096", "at least", 3.5, frozen(4096, SCALING, ASAP)),
    Bar("Sinkhorn in tiles / ASAP, n = 16384", "at least", 20, compared("long", 16384, TILES, ASAP)),
    Bar(
        "calibration by regression / the teacher's forward pass, n = 1024",
        "at most",
        2.5,
        compiled("regression", TEACHER),
    ),
    Bar("calibration by KL / by regression, n = 1024", "at most", 2.0, compiled("kl", "regression")),
    *(
        Bar(
            f"torch autograd / our training step, n = {n}",
            "at least",
            b,
            compared("training", n, TORCH_LOG, SCALING),
        )
        for n, b in ((64, 3.5), (512, 8), (1024, 30))
    ),
    Bar("peak memory of that step, torch / ours, n = 512", "at least", 10, _memory_of_steps),
    Bar("extra memory of one ASAP head, n = 16384", "at most", 40, _memory_of_asap, " MiB"),
    Bar(
        "asap-ref reproduce --dataset digits",
        "at most",
        120,
        lambda record: record.get("reproduce", {}).get("seconds"),
        " s",
    ),
)


FORMS = tuple(  # the default forms are for everybody, so that small problems must not pay for large ones
    Bar(
        f"default / readable {what}, {n} tokens, 256 heads",
        "at most",
        1.0,
        compared("small", n, f"{what}, default", f"{what}, readable"),
    )
    for n in (16, 32, 64)
    for what in ("softmax", "Sinkhorn", "ASAP", "softmax step", "Sinkhorn step", "ASAP step")
)


def judged(record, bars=BARS):
    """Give each bar that the record can tell of: [(bar, value, (low, high) or None)]."""
    found = [(bar, bar.read(record)) for bar in bars]
    return [
        (bar, *((value[0], value[1:]) if isinstance(value, tuple) else (value, None)))
        for bar, value in found
        if value is not None
    ]


def payback(record):
    """Forward passes after which compiling a layer is paid back, against each form of Sinkhorn: None for never."""
    done = record["compile"]
    (seconds,) = (row["median"] for row in done["rows"] if row["name"] == "regression, the default map")
    for race in record.get("frozen", []):
        if race["n"] == done["n"]:
            median = {row["name"]: row["median"] for row in race["rows"]}
            saved = {name: median[name] - median[ASAP] for name in (LOG, SCALING, TORCH_LOG) if name in median}
            return {name: int(np.ceil(seconds / s)) if s > 0 else None for name, s in saved.items()}
    return {}


def truncated(race):
    """What ASAP is worth in a race: its row, and that of the fastest Sinkhorn at least as near to the teacher.

    The full teacher counts, whatever its rounding.
    """
    rows = {row["name"]: row for row in race["rows"]}
    asap = rows[ASAP]
    near = [
        row
        for name, row in rows.items()
        if name == SCALING or (name.startswith(CUT) and row["output_error"] <= asap["output_error"])
    ]
    return asap, min(near, key=lambda row: row["median"])


# --------------------------------------------------------------------------------------------------------- tables


def markdown(record):
    """Write the tables of the sections that the record has, and what they were measured on."""
    on_numpy = record["about"]["settings"]["backend"] == "numpy"
    parts = [bars_table(record) if on_numpy else NOT_JUDGED]
    forward = [race for section in ("frozen", "sharp", "uniform") for race in record.get(section, [])]
    if record.get("parts"):
        parts.append(_parts(record["parts"][0], record["about"]["settings"]))
    largest = {race["kind"]: race for race in forward if race["n"] <= 1024}
    parts += [f"Attention forward, {kind} scores, n = {r['n']}:\n\n{_forward(r)}" for kind, r in largest.items()]
    trained = record.get("reproduce", {}).get("layers", [])
    if forward or trained:
        parts.append(_where_it_does_not_win(forward + trained))
    if record.get("reproduce", {}).get("epochs"):
        parts.append(_epochs(record["reproduce"]["epochs"]))
    if record.get("training"):
        parts.append(f"Training step, milliseconds:\n\n{_by_length(record['training'])}")
    if record.get("small"):
        told = bars_table(record, FORMS) if on_numpy else _by_length(record["small"])
        parts.append(f"Small problems, the default forms against the readable ones:\n\n{told}")
    if record.get("long"):
        parts.append(f"Long sequences, two heads, milliseconds:\n\n{_by_length(record['long'])}")
    if record.get("memory"):
        parts.append(f"Peak memory beyond the inputs, in a fresh process:\n\n{_memory(record['memory'])}")
    if "compile" in record:
        parts.append(compile_table(record))
    return "\n".join([*parts, *measured_on(record)])


def measured_on(record):
    """Say on what the record was measured, and what it lacks."""
    about = record["about"]
    settings = about["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in {**about["machine"], **about["versions"]}.items())
    threads = ", ".join(f"{name} {count}" for name, count in about["threads"].items())
    yield (
        f"{settings['heads']} heads of dimension {settings['d']}, float32, T = {settings['n_iter']}; ASAP's map: "
        f"{', '.join(f'{name} {value}' for name, value in settings['map'].items())}; "
        f"{settings['backend']}; medians of {settings['rounds']} interleaved rounds after a warm-up (of at least "
        f"{settings['least']} for who takes longer than {settings['budget']:g} s), in brackets the quartiles of the "
        f"ratios within rounds. Threads: {threads}. Machine: {versions}.\n"
    )
    if record["left_out"]:
        yield f"Left out: {'; '.join(record['left_out'])}.\n"


def compile_table(record):
    """Write what calibration takes, and after how many forward passes that is paid back."""
    done = record["compile"]
    teacher = done["rows"][0]["median"]
    rows = [["calibrating one layer", "s", "/ the teacher's forward pass"]]
    rows += [[row["name"], f"{row['median']:.2f}", f"{row['median'] / teacher:.2f}"] for row in done["rows"]]
    against = [
        f"{passes} forward passes of {name}" if passes else f"never against {name}"
        for name, passes in payback(record).items()
    ]
    paid = f" By regression the default map is paid back after {', '.join(against)}." if against else ""
    return (
        f"{markdown_table(rows)}\nOn {done['sequences']} sequences of {done['n']} tokens, medians of at least "
        f"{min(len(row['seconds']) for row in done['rows'])} rounds; without another word the map "
        f"is 32 slices and cumulants.{paid}\n"
    )


def _parts(race, settings):
    """Say where the time goes, and what stands between ASAP and the bars."""
    ms = {row["name"]: 1000 * row["median"] for row in race["rows"]}
    told = f"Where the time of ASAP goes, n = {race['n']}, milliseconds:\n\n" + markdown_table(
        [list(ms), [f"{x:.2f}" for x in ms.values()]]
    )
    if FROM_DUAL in ms:
        softmax, from_dual, sorts, whole = (ms[name] for name in ("softmax", FROM_DUAL, "sorts", ASAP))
        told += (
            f"\nFrom a given dual ASAP takes {from_dual / softmax:.2f} times softmax. The prediction of the dual adds "
            f"{(whole - from_dual) / softmax:.2f}; its sorts alone would be {sorts / softmax:.2f}.\n"
        )
    if SDPA in ms:
        products, floor = ms["products"], ms["product, exp, product"]
        giga = 4 * race["n"] ** 2 * settings["d"] * settings["heads"] / products / 1e6
        told += (
            f"\ntorch's fused softmax takes {ms[SDPA] / products:.2f} times the two products alone, which run at "
            f"{giga:.0f} GFLOP/s here, and {ms[SDPA] / floor:.2f} times the floor of one exponential between them. "
            f"A bar of 1.8 times torch leaves {1.8 * ms[SDPA] / floor:.2f} times that floor.\n"
        )
    return told


def _where_it_does_not_win(races):
    rows = [["scores", "n", "ASAP, ms", "output error", "fastest Sinkhorn as near", "ms", "Sinkhorn / ASAP"]]
    for race in races:
        asap, other = truncated(race)
        rows.append(
            [
                race["kind"],
                str(race["n"]),
                f"{1000 * asap['median']:.2f}",
                f"{asap['output_error']:.2g}",
                other["name"],
                f"{1000 * other['median']:.2f}",
                f"{other['median'] / asap['median']:.2f}",
            ]
        )
    lost = sum(float(row[-1]) < 1 for row in rows[1:])
    return (
        "Where ASAP does not win: against the fastest Sinkhorn, truncated or not, that is at least as near to the "
        f"teacher, it is slower in {lost} of {len(races)} cases (a ratio below one).\n\n{markdown_table(rows)}"
    )


def _epochs(seconds):
    """Say what the default forms save of the main job."""
    rows = [["training of", "readable, s", "default, s", "readable / default"]]
    for name in ("softmax", "sinkhorn"):
        slow, fast = seconds[f"{name}, readable"], seconds[f"{name}, default"]
        quotient, low, high = ratio(slow, fast)
        told = f"{quotient:.2f} ({low:.2f} to {high:.2f})"
        rows.append([name, f"{np.median(slow):.2f}", f"{np.median(fast):.2f}", told])
    job = "`asap-ref reproduce --dataset digits`"
    return f"An epoch of {job}, in the readable forms and in the default ones:\n\n{markdown_table(rows)}"


def _memory(found):
    rows = [["", "n", "heads", "MiB", "seconds"]]
    for r in found:
        name = r["name"] + (", training step" if r["what"] == "training" else "")
        rows.append([name, str(r["n"]), str(r["heads"]), f"{r['bytes'] / MIB:.1f}", f"{r['seconds']:.2f}"])
    return markdown_table(rows)


def bars_table(record, bars=BARS):
    """Write the table of bars that the record can tell of."""
    rows = [["work", "bar", "measured", ""]]
    for bar, value, spread in judged(record, bars):
        told = f"{value:.3g}{bar.unit}" + (f" ({spread[0]:.3g} to {spread[1]:.3g})" if spread else "")
        rows.append([bar.work, f"{bar.sense} {bar.bound:g}{bar.unit}", told, bar.verdict(value, spread)])
    return markdown_table(rows)


def _forward(race):
    rows = [["attention", "ms", "output error", "KL", "column error"]]
    for row in race["rows"]:
        told = [f"{row[key]:.2g}" if key in row else "" for key in ("output_error", "kl", "column_error")]
        rows.append([row["name"], f"{1000 * row['median']:.2f}", *told])
    return markdown_table(rows)


def _by_length(races):
    names = list(dict.fromkeys(row["name"] for race in races for row in race["rows"]))
    medians = [{row["name"]: row["median"] for row in race["rows"]} for race in races]
    rows = [["", *(f"n = {race['n']}" for race in races)]]
    for name in names:
        rows.append([name, *(f"{1000 * m[name]:.2f}" if name in m else "" for m in medians)])
    return markdown_table(rows)
