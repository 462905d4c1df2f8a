"""One sentence that says when ASAP pays and when it does not, from the numbers of a report of the main job."""

from __future__ import annotations

LOOPS = ("sinkhorn", "over-relaxed")


def in_one_sentence(report):
    """Say the times and labels at the greatest length, and up to which length a loop does better.

    It does better where the teacher, cut or not, or over-relaxed iterations that nobody calibrated, are at least as
    near as ASAP in no more time, in a whole forward pass.
    """
    by_length = {}
    for row in report["rows"]:
        by_length.setdefault(row["n"], {})[row["attention"]] = row
    longest, rows = list(by_length.items())[-1]
    n_iter, asap = report["settings"]["teacher"]["n_iter"], rows["asap"]
    alone = {
        name: [row for row in report["layers"] if (row["n"], row["attention"]) == (longest, name)]
        for name in ("asap", "sinkhorn", "softmax")
    }
    if alone["asap"]:  # all layers for the scaling form, the first for the log domain
        ms = {name: sum(row["ms"] for row in rows) for name, rows in alone.items()}
        log_domain, of = alone["asap"][0]["speedup_log_domain"], "ASAP's attention"
    else:
        ms = {name: row["ms_per_forward"] for name, row in rows.items()}
        log_domain, of = asap["speedup_log_domain"], "a forward pass with ASAP"
    judged = report["dataset"]["lengths"][-1]["judged"] or report["dataset"]["test"]
    said = (
        f"At {longest:,} tokens, on {report['machine']['processor']} with {report['settings']['backend']}, {of} takes "
        f"{_of_the_time(ms['sinkhorn'] / ms['asap'])} its teacher's (Sinkhorn, T = {n_iter}, in scaling form)"
    )
    if log_domain is not None:
        said += f", {_of_the_time(log_domain)} the log-domain loop of the literature"
    if ms.get("softmax"):
        said += f", and {ms['asap'] / ms['softmax']:.2f} of softmax's time"
    said += (
        f"; its output is off by {asap['output_error']:.1%}, and the label is the teacher's for "
        f"{asap['agreement']:.1%} of {judged} test inputs"
    )
    return f"**{said}; {_where_sinkhorn_pays(by_length)}.**"


def _of_the_time(ratio):
    """1.25 -> "1.2 times less than", 0.5 -> "2.0 times as long as"."""
    if ratio >= 1:
        return f"{ratio:.0f} times less than" if ratio >= 10 else f"{ratio:.1f} times less than"
    return f"{1 / ratio:.1f} times as long as"


def _where_sinkhorn_pays(by_length):
    pays = {}
    for n, rows in by_length.items():
        asap = rows["asap"]
        near = [
            row
            for name, row in rows.items()
            if name.startswith(LOOPS) and row["output_error"] <= asap["output_error"]
        ]
        best = min(near, key=lambda row: row["ms_per_forward"])
        if best["ms_per_forward"] <= asap["ms_per_forward"]:
            pays[n] = _called(best["attention"])
    if not pays:
        return "at no length measured is a Sinkhorn loop as near in less time"
    n = max(pays)
    if pays[n] is None:
        return f"at {n:,} tokens and below the teacher itself takes no more time"
    return f"at {n:,} tokens and below use {pays[n]}, which is as near in no more time"


def _called(name):
    """Say in words what a row's attention is, as "over-relaxed-gaussian-1"; None for the teacher."""
    kind, _, rest = name.partition("-")
    if kind == "sinkhorn":
        return f"Sinkhorn with T = {rest}" if rest else None
    start, count = rest.removeprefix("relaxed-").split("-")
    start = "softmax" if start == "softmax" else "the Gaussian dual"
    return f"Sinkhorn, T = {count}, over-relaxed from {start}"
