"""In a few words when ASAP pays and when it does not, from the numbers of a report of the main job."""

from __future__ import annotations

LOOPS = ("sinkhorn", "over-relaxed")
ABOUT_AS_NEAR = 1.5  # times ASAP's error
ABOUT_THE_SAME_TIME = 1.05  # medians of few turns differ by as much
SOME_LABELS = 50  # judged, at least, where agreement is told
MODULES = {"numpy": "NumPy", "cupy": "CuPy"}


def in_few_words(report):
    """Say the times at the greatest length, the labels, and up to which length a loop is the better buy.

    It is one where the teacher, cut or not, or over-relaxed iterations that nobody calibrated, are about as near as
    ASAP in about the same time or less, in a whole forward pass.
    """
    by_length = {}
    for row in report["rows"]:
        by_length.setdefault(row["n"], {})[row["attention"]] = row
    longest, rows = list(by_length.items())[-1]
    settings, machine = report["settings"], report["machine"]["processor"]
    ms, log_domain, teacher, asap = _times(report, longest, rows)
    module, n_iter = MODULES.get(settings["backend"], settings["backend"]), settings["teacher"]["n_iter"]
    said = f"At {longest:,} tokens ({machine}, {module}) {teacher}, Sinkhorn with T = {n_iter}, takes "
    said += f"{_times_as_long(ms['sinkhorn'] / ms['asap'])} as {asap} in the fast scaling form"
    if log_domain is not None:
        said += f" and {_times_as_long(log_domain)} in the log domain, as the literature runs it"
    if ms.get("softmax"):
        said += f"; ASAP's time is {ms['asap'] / ms['softmax']:.2f} of softmax's"
    said += f". Its output is off by {rows['asap']['output_error']:.1%} of the teacher's; {_labels(by_length)}"
    return f"**{said}. {_where_sinkhorn_pays(by_length)}.**"


def _times(report, n, rows):
    """Milliseconds by attention, the log domain's ratio, and of what: of the attention alone if it was timed."""
    alone = {
        name: [row for row in report["layers"] if (row["n"], row["attention"]) == (n, name)]
        for name in ("asap", "sinkhorn", "softmax")
    }
    if alone["asap"]:  # all layers for the scaling form, the first for the log domain
        ms = {name: sum(row["ms"] for row in own) for name, own in alone.items()}
        return ms, alone["asap"][0]["speedup_log_domain"], "the teacher's attention", "ASAP's"
    ms = {name: row["ms_per_forward"] for name, row in rows.items()}
    return ms, rows["asap"]["speedup_log_domain"], "a forward pass with the teacher", "with ASAP"


def _times_as_long(ratio):
    digits = 0 if ratio >= 10 else 1 if ratio >= 1 else 2
    return f"{ratio:.{digits}f} times as long"


def _labels(by_length):
    """Say how many labels are the teacher's, at the greatest length where so many were judged as to say something."""
    judged = {n: rows["asap"]["judged"] for n, rows in by_length.items()}
    n = max((n for n in judged if judged[n] >= SOME_LABELS), default=max(judged))
    same = round(by_length[n]["asap"]["agreement"] * judged[n])
    where = f"at {n:,} tokens " if len(by_length) > 1 else ""
    return f"{where}the label is the teacher's for {same} of {judged[n]} test inputs"


def _where_sinkhorn_pays(by_length):
    pays = {}
    for n, rows in by_length.items():
        asap = rows["asap"]
        buys = [
            row
            for name, row in rows.items()
            if name.startswith(LOOPS)
            and row["output_error"] <= ABOUT_AS_NEAR * asap["output_error"]
            and row["ms_per_forward"] <= ABOUT_THE_SAME_TIME * asap["ms_per_forward"]
        ]
        if buys:
            pays[n] = min(buys, key=lambda row: row["output_error"])["attention"]
    if not pays:
        return "At no length measured is a Sinkhorn loop about as near in the same time"
    n = max(pays)
    return f"At {n:,} tokens and below use {_called(pays[n])}"


def _called(name):
    """Say in words what a row's attention is, as "over-relaxed-gaussian-1", and what it is worth."""
    kind, _, rest = name.partition("-")
    if (kind, rest) == ("sinkhorn", ""):
        return "the teacher itself, in about the same time or less"
    worth = "about as near as ASAP in about the same time or less"
    if kind == "sinkhorn":
        return f"Sinkhorn with T = {rest}, {worth}"
    return f"a few over-relaxed iterations (the row {name}), {worth}"
