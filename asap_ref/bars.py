"""Where the benchmark wants to be: each bar, read off a record of benchmark.py, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from asap_ref.stopwatch import ratio

ASAP = "ASAP, 16 slices"
LOG, SCALING, TILES = "Sinkhorn, log domain", "Sinkhorn, scaling form", "Sinkhorn, in tiles"
TORCH_LOG = "torch Sinkhorn, log domain"
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


def compared(section, n, slow, fast, kind=None):
    """Reader of a ratio of times: in one race, within rounds."""

    def read(record):
        for race in record[section]:
            if race["n"] == n and race.get("kind") == kind:
                times = {row["name"]: row["seconds"] for row in race["rows"]}
                return ratio(times[slow], times[fast]) if slow in times and fast in times else None
        return None

    return read


def frozen(n, slow, fast):
    """Reader of a ratio on the frozen layer."""
    return compared("frozen", n, slow, fast, kind="recorded-like")


def memory(record, what, name, n):
    """Bytes measured for one, or None."""
    found = [r["bytes"] for r in record["memory"] if (r["what"], r["name"], r["n"]) == (what, name, n)]
    return found[0] if found else None


def _memory_of_steps(record):
    theirs, own = memory(record, "training", TORCH_LOG, 512), memory(record, "training", SCALING, 512)
    return theirs / own if theirs and own else None


def _memory_of_asap(record):
    found = memory(record, "forward", ASAP, 16384)
    return None if found is None else found / MIB


BARS = (
    Bar("ASAP / softmax, both ours, n = 1024", "at most", 1.15, frozen(1024, ASAP, "softmax")),
    Bar(
        "ASAP / floor (product, exp, product), n = 1024",
        "at most",
        1.35,
        frozen(1024, ASAP, "product, exp, product"),
    ),
    Bar("ASAP / torch SDPA softmax, n = 1024", "at most", 1.4, frozen(1024, ASAP, "torch softmax, fused (SDPA)")),
    Bar("log-domain Sinkhorn / ASAP, ours, n = 1024", "at least", 20, frozen(1024, LOG, ASAP)),
    Bar("log-domain Sinkhorn of torch / ASAP, n = 1024", "at least", 20, frozen(1024, TORCH_LOG, ASAP)),
    Bar("scaling Sinkhorn / ASAP, n = 1024", "at least", 1.4, frozen(1024, SCALING, ASAP)),
    Bar("scaling Sinkhorn / ASAP, n = 4096", "at least", 2.3, frozen(4096, SCALING, ASAP)),
    Bar("Sinkhorn in tiles / ASAP, n = 16384", "at least", 10, compared("long", 16384, TILES, ASAP)),
    *(
        Bar(
            f"torch autograd / our training step, n = {n}",
            "at least",
            b,
            compared("training", n, TORCH_LOG, SCALING),
        )
        for n, b in ((64, 3), (512, 8), (1024, 20))
    ),
    Bar("peak memory of that step, torch / ours, n = 512", "at least", 5, _memory_of_steps),
    Bar("extra memory of one ASAP head, n = 16384", "at most", 64, _memory_of_asap, " MiB"),
    *(
        Bar(
            f"default / readable {what}, {n} tokens, 256 heads",
            "at most",
            1.0,
            compared("small", n, f"{what}, default", f"{what}, readable"),
        )
        for n in (16, 32, 64)
        for what in ("softmax", "Sinkhorn", "ASAP", "softmax step", "Sinkhorn step", "ASAP step")
    ),
    Bar("asap-ref reproduce", "at most", 120, lambda record: record.get("reproduce", {}).get("seconds"), " s"),
)


def judged(record):
    """Give each bar that the record can tell of: [(bar, value, (low, high) or None)]."""
    found = [(bar, bar.read(record)) for bar in BARS]
    return [
        (bar, *((value[0], value[1:]) if isinstance(value, tuple) else (value, None)))
        for bar, value in found
        if value is not None
    ]


def payback(record):
    """Forward passes after which compiling a layer is paid back, against each form of Sinkhorn, at n = 256."""
    for race in record["frozen"]:
        if race["n"] == record["compile"]["n"] and race["kind"] == "recorded-like":
            median = {row["name"]: row["median"] for row in race["rows"]}
            saved = {name: median[name] - median[ASAP] for name in (LOG, SCALING, TORCH_LOG) if name in median}
            return {n: int(np.ceil(record["compile"]["seconds"] / s)) if s > 0 else None for n, s in saved.items()}
    return {}


# --------------------------------------------------------------------------------------------------------- tables


def markdown(record):
    """Write the tables: bars, the frozen layer, the training step; and the machine."""
    settings, made_on = record["settings"], record["machine"]
    parts = [_bars(record)]
    for race in record["frozen"]:
        if race["n"] == max((r["n"] for r in record["frozen"] if r["n"] <= 1024), default=0):
            parts.append(f"Frozen layer, {race['kind']} scores, n = {race['n']}:\n\n{_frozen(race)}")
    parts.append(f"Training step, milliseconds:\n\n{_by_length(record['training'])}")
    if record["long"]:
        parts.append(f"Long sequences, two heads, milliseconds:\n\n{_by_length(record['long'])}")
    against = [
        f"{passes} forward passes of {name}" if passes else f"never against {name}"
        for name, passes in payback(record).items()
    ]
    parts.append(
        f"Compiling one layer took {record['compile']['seconds']:.1f} s ({record['compile']['tokens']} tokens a head); "
        f"at n = {record['compile']['n']} that is paid back after {', '.join(against)}.\n"
    )
    versions = ", ".join(f"{name} {number}" for name, number in {**made_on, **record["versions"]}.items())
    threads = ", ".join(f"{name} {count}" for name, count in record["threads"].items())
    parts.append(
        f"{settings['heads']} heads of dimension {settings['d']}, float32, T = {settings['n_iter']}, "
        f"{settings['backend']}; medians of {settings['rounds']} interleaved rounds, in brackets the quartiles of the "
        f"ratios within rounds. Threads: {threads}. Machine: {versions}.\n"
    )
    if record["left_out"]:
        parts.append(f"Left out: {'; '.join(record['left_out'])}.\n")
    return "\n".join(parts)


def _bars(record):
    rows = [["work", "bar", "measured", ""]]
    for bar, value, spread in judged(record):
        told = f"{value:.3g}{bar.unit}" + (f" ({spread[0]:.3g} to {spread[1]:.3g})" if spread else "")
        rows.append(
            [bar.work, f"{bar.sense} {bar.bound:g}{bar.unit}", told, "met" if bar.met(value) else "missed"]
        )
    return table(rows)


def _frozen(race):
    rows = [["attention", "ms", "output error", "KL", "column error"]]
    for row in race["rows"]:
        told = [f"{row[key]:.2g}" if key in row else "" for key in ("output_error", "kl", "column_error")]
        rows.append([row["name"], f"{1000 * row['median']:.2f}", *told])
    return table(rows)


def _by_length(races):
    names = list(dict.fromkeys(row["name"] for race in races for row in race["rows"]))
    medians = [{row["name"]: row["median"] for row in race["rows"]} for race in races]
    rows = [["", *(f"n = {race['n']}" for race in races)]]
    for name in names:
        rows.append([name, *(f"{1000 * m[name]:.2f}" if name in m else "" for m in medians)])
    return table(rows)


def table(rows):
    """Markdown of rows of cells, the first of which is the head."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
