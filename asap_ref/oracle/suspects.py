"""Which mistake explains the failures: flags ranked by evidence.

Four kinds of evidence, from all cases of one operator:

1. a breach of the contract says itself what is wrong;
2. an array that *is* something known: the right one times sqrt(d), what comes out with one iteration less (each
   remark of diagnosis.py and whatif.py names its flag). It counts by the share of the failing cases that it explains,
   of which whatif.py tries a few;
3. the pattern: cases with the flag fail and those without it pass;
4. if the ordinary cases fail too, the formula itself is wrong: then the flags of the ordinary case of version 1 speak,
   or the backward pass, if only gradients are wrong, or lost digits, if all errors are small.

Flags that the dtype or the operator rule out are not named.
"""

from __future__ import annotations

from asap_ref.oracle import contract
from asap_ref.oracle.stored import cases, flags
from asap_ref.oracle.whatif import PER_OPERATOR

ONLY_IN = {  # flags that mean something in these dtypes alone
    "float32_inside": ("float64",),
    "half_precision_overflow": ("float16", "bfloat16"),
    "half_gradients": ("float16", "bfloat16"),
}
BACKWARD, DIGITS = "gradient_through_both_sides", "full_mantissa"
SMALL = 0.03  # an error up to which it may be one of too few digits


def hint_of(flag):
    """What to look at for a flag, or for a breach of the contract."""
    return contract.HINTS.get(flag) or flags().get(flag, "")


def ranked(reports):
    """Flags of the reports of one operator in one dtype, the best explanation first."""
    failed = [report for report in reports if not report.passed]
    if not failed:
        return []
    if all(report.only_absent for report in failed):
        return list(dict.fromkeys(_breaches(failed)))
    dtype, operator = failed[0].dtype, failed[0].case.operator
    scores = {flag: _pattern(flag, reports, failed) for report in failed for flag in report.case.flags}

    def add(flag, more):
        scores[flag] = scores.get(flag, 0.0) + more

    spoken = [{flag for c in report.comparisons for flag in c.evidence} for report in failed]
    for flag in set().union(*spoken):
        add(flag, 2 * min(1.0, sum(flag in each for each in spoken) / min(len(failed), PER_OPERATOR)))
    ordinary = [report for report in reports if "plain" in report.case.flags]
    everywhere = bool(ordinary) and all(not report.passed for report in ordinary)
    if everywhere:
        plain = [case for case in cases(flags="plain", version=1) if case.operator == operator]
        for flag in {flag for case in plain for flag in case.flags}:
            add(flag, 0.5)
    if _only_backward(failed):
        add(BACKWARD, 1.75 if everywhere else 0.25)
    add(DIGITS, 0.5 if _small(failed) else -0.25)
    return list(dict.fromkeys(_breaches(failed) + _possible(scores, operator, dtype, set().union(*spoken))))


def ranked_by_smallest(reports, smallest):
    """The same if the case has been shrunk: what could not be taken from it is what it takes to fail."""
    spoken = [flag for c in smallest.comparisons for flag in c.evidence]
    needed = [flag for flag in smallest.case.flags if flag not in ("single_token", DIGITS, "half_gradients")]
    if _only_backward([smallest]):
        spoken.insert(0, BACKWARD)
    breaches = _breaches([smallest])
    by_chance = {flag for report in reports if not report.passed for flag in report.case.flags} - set(
        smallest.case.flags
    )
    rest = [flag for flag in ranked(reports) if flag not in by_chance]  # which shrinking took away
    found = dict.fromkeys([*breaches, *spoken, *needed, *rest])
    return [flag for flag in found if smallest.dtype in ONLY_IN.get(flag, (smallest.dtype,))]


def _breaches(failed):
    found = [name for report in failed for name, _ in report.breaches]
    lost = [
        c.status == "missing" and c.name in report.case.outputs for report in failed for c in report.comparisons
    ]
    if any(lost):
        found.append("missing_output")
    elif all(report.only_absent for report in failed):
        found.append("missing_gradient")
    if all(report.message for report in failed):
        found.append("exception")
    return found


def _possible(scores, operator, dtype, spoken):
    """Flags by score, without those that the operator or the dtype rule out, unless an array speaks for them."""
    possible = spoken | {flag for case in cases(operator) for flag in case.flags} | {BACKWARD, "float32_inside"}
    ordered = sorted(scores, key=lambda flag: (-scores[flag], flag))
    return [f for f in ordered if f in possible and f != "plain" and dtype in ONLY_IN.get(f, (dtype,))]


def _pattern(flag, reports, failed):
    """How well "cases with this flag fail" describes what happened: between -1 and 1.1."""
    with_flag = [not report.passed for report in reports if flag in report.case.flags]
    without = [not report.passed for report in reports if flag not in report.case.flags]
    lift = sum(with_flag) / len(with_flag) - (sum(without) / len(without) if without else 0.0)
    recall = sum(with_flag) / len(failed)
    return lift * (1 + recall) / 2 + 0.1 * recall


def _wrong(failed):
    return [c for report in failed for c in report.comparisons if c.status == "wrong"]


def _only_backward(failed):
    wrong = _wrong(failed)
    return bool(wrong) and all(c.name.startswith("gradient") for c in wrong)


def _small(failed):
    wrong = _wrong(failed)
    return bool(wrong) and all(c.error < SMALL for c in wrong)
