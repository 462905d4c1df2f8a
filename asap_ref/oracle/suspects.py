"""Which mistake explains the failures: flags ranked by evidence.

Three kinds of evidence, from all cases of one operator:

1. a breach of the contract says itself what is wrong;
2. an array that *is* something known: the right one times sqrt(d), what comes out with one iteration less (each
   remark of diagnosis.py names its flag). It counts by the share of the failing cases that it explains;
3. the pattern: cases with the flag fail and those without it pass. If the ordinary cases fail too, the formula
   itself is wrong, and the flags of these speak rather than those of masks and sizes.

Flags that the dtype or the operator rule out are not named.
"""

from __future__ import annotations

from asap_ref.oracle import contract
from asap_ref.oracle.case import cases, flags

ONLY_IN = {  # flags that mean something in these dtypes alone
    "float32_inside": ("float64",),
    "half_precision_overflow": ("float16", "bfloat16"),
    "half_gradients": ("float16", "bfloat16"),
}
BACKWARD = "gradient_through_both_sides"


def hint_of(flag):
    """What to look at for a flag, or for a breach of the contract."""
    return contract.HINTS.get(flag) or flags().get(flag, "")


def ranked(reports):
    """Flags of the reports of one operator in one dtype, the best explanation first."""
    failed = [report for report in reports if not report.passed]
    if not failed:
        return []
    breaches = [name for report in failed for name, _ in report.breaches]
    dtype, operator = failed[0].dtype, failed[0].case.operator
    scores = {flag: _pattern(flag, reports, failed) for report in failed for flag in report.case.flags}
    for report in failed:
        for flag in {flag for c in report.comparisons for flag in c.evidence}:
            scores[flag] = scores.get(flag, 0.0) + 2 / len(failed)
    if _only_backward(failed):
        scores[BACKWARD] = scores.get(BACKWARD, 0.0) + 0.75
    scores.pop("plain", None)
    possible = {flag for case in cases(operator) for flag in case.flags} | {BACKWARD, "float32_inside"}
    named = [
        flag
        for flag in sorted(scores, key=lambda flag: (-scores[flag], flag))
        if flag in possible and dtype in ONLY_IN.get(flag, (dtype,))
    ]
    if not breaches and all(report.message for report in failed):
        named.insert(1 if len(failed) < len(reports) else 0, "exception")
    return list(dict.fromkeys(breaches + named))


def _pattern(flag, reports, failed):
    """Between -1 and 1.5: how well "cases with this flag fail" describes what happened."""
    with_flag = [not report.passed for report in reports if flag in report.case.flags]
    without = [not report.passed for report in reports if flag not in report.case.flags]
    lift = sum(with_flag) / len(with_flag) - (sum(without) / len(without) if without else 0.0)
    recall = sum(with_flag) / len(failed)
    ordinary = [report for report in reports if "plain" in report.case.flags]
    formula = bool(ordinary) and all(not report.passed for report in ordinary)
    own = any(flag in report.case.flags for report in ordinary)
    return lift * (1 + recall) / 2 + (0.5 if formula and own else 0.0) + 0.1 * recall


def _only_backward(failed):
    wrong = [c for report in failed for c in report.comparisons if c.status == "wrong"]
    return bool(wrong) and all(c.name.startswith("gradient") for c in wrong)
