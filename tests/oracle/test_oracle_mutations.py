"""The oracle catches realistic bugs: each is injected into a copy of the torch example, which passes without."""

import json

import pytest

from asap_ref.lab import gallery

RECORD = json.loads((gallery.FIGURES / "tests_quality" / "mutations.json").read_text(encoding="utf-8"))


def test_the_committed_record_has_every_bug_caught_and_most_hints_right():
    rows = RECORD["rows"]
    assert RECORD["passes_without"]
    assert len(rows) >= 25 and all(row["caught"] for row in rows)
    for key in ("operator_named", "hint_named"):
        assert sum(row[key] for row in rows) > 0.75 * len(rows)


@pytest.mark.slow
def test_every_bug_is_caught_as_the_record_says():
    pytest.importorskip("torch")
    fresh = gallery.load("mutations").measure()
    assert fresh["passes_without"]
    told = ("bug", "operator", "flags", "caught", "first_operator", "hint_named")
    assert [[row[key] for key in told] for row in fresh["rows"]] == [
        [row[key] for key in told] for row in RECORD["rows"]
    ]


def test_a_bug_whose_text_is_gone_is_refused():
    script = gallery.load("mutations")
    gone = script.BUGS[0].__class__("gone", "sinkhorn", (), "no such text", "")
    with pytest.raises(ValueError, match=r"gone: the right text occurs 0 times in torch_layer\.py"):
        script.mutant(gone)


KERNELS = json.loads(gallery.scripts()["kernel_mutations"].with_suffix(".json").read_text(encoding="utf-8"))


def test_the_committed_record_of_kernels_has_every_bug_caught_and_most_areas_right():
    rows = KERNELS["rows"]
    assert KERNELS["passes_without"] and KERNELS["seconds"] <= 60
    script = gallery.load("kernel_mutations")
    assert [row["bug"] for row in rows] == [bug.name for bug in script.BUGS]
    assert len(rows) >= 60 and all(row["caught"] for row in rows)
    assert sum(row["hint_named"] for row in rows) >= 0.85 * len(rows)
    assert all(len(row["suspects"]) <= 2 for row in rows)


def test_every_bug_of_a_kernel_still_applies():
    pytest.importorskip("torch")
    script = gallery.load("kernel_mutations")
    for bug in script.BUGS:
        script.mutant(bug)


@pytest.mark.slow
def test_every_bug_of_a_kernel_is_caught_as_the_record_says():
    pytest.importorskip("torch")
    fresh = gallery.load("kernel_mutations").measure()
    assert fresh["passes_without"] and all(row["caught"] for row in fresh["rows"])
    assert sum(row["hint_named"] for row in fresh["rows"]) >= 0.85 * len(fresh["rows"])
