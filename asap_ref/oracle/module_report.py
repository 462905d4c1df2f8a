"""What a whole implementation is told: what failed, where to begin, what was skipped and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from asap_ref.oracle.stored import operators
from asap_ref.oracle.suspects import hint_of, ranked

OF_FEATURES = ("sliced_potentials", "cumulant_features", "quadratic_features")
BUILT_ON_FEATURES = ("dual_features", "amortized_query_dual", "asap_attention")


@dataclass(frozen=True)
class ModuleReport:
    """Reports of all cases of a module; `.passed`, and a text that says where to begin."""

    name: str
    reports: tuple
    absent: tuple  # operators that the module does not have
    skipped: tuple = ()  # (case id, reason) of what was not run
    layouts: tuple = ()  # more reports for each operator: memory layouts of its inputs, and the same again
    misspelt: tuple = ()  # (operator, what the module may have called it)
    remark: str = ""
    localised: str = ""  # which family of features fails
    stopped: bool = False  # at the first failure, as was asked

    @property
    def passed(self):
        """Whether every case of every operator that is there passed, and there was one."""
        return bool(self.reports) and not self.failed

    @property
    def failed(self):
        """Reports that did not pass, lowest operator first."""
        order = list(operators())
        found = [report for report in (*self.reports, *self.layouts) if not report.passed]
        return tuple(sorted(found, key=lambda report: order.index(report.case.operator)))

    def first_operator(self):
        """Return the lowest operator that fails: what stands above it may be right."""
        return self.failed[0].case.operator if self.failed else None

    def suspects(self):
        """Flags that explain the failures of the lowest failing operator, best first; see `suspects.ranked`."""
        first = self.first_operator()
        return ranked([report for report in (*self.reports, *self.layouts) if report.case.operator == first])

    def absent_arrays(self):
        """Names of the arrays that are not there, if that is all that fails of the lowest failing operator."""
        failed = [report for report in self.failed if report.case.operator == self.first_operator()]
        if not all(report.only_absent for report in failed):
            return []
        return list(dict.fromkeys(name for report in failed for name in report.wrong))

    def without_gradients(self):
        """Operators of which a gradient that could be checked was not given."""
        return sorted(
            {
                report.case.operator
                for report in self.reports
                for c in report.comparisons
                if c.status == "not given"
            }
        )

    def features_lines(self):
        """What to do about a prediction from features, if the lowest operator that fails is built on one."""
        found = [self.localised] if self.localised else []
        absent = [name for name in OF_FEATURES if name in self.absent]
        some = any(report.case.operator in OF_FEATURES for report in self.reports)
        if self.first_operator() in BUILT_ON_FEATURES and absent and not some:
            found.append(f"you gave none of the operators below it: {', '.join(absent)} would localise this")
        return found

    def as_dict(self):
        """Return everything as plain dicts and lists, for JSON."""
        return {
            "module": self.name,
            "passed": self.passed,
            "cases": len(self.reports),
            "begin_with": self.first_operator(),
            "suspects": self.suspects() if self.failed else [],
            "failed": [report.as_dict() for report in self.failed],
            "passed_cases": [report.case.id for report in self.reports if report.passed],
            "skipped": [{"case": case, "reason": reason} for case, reason in self.skipped],
            "absent": list(self.absent),
            "misspelt": dict(self.misspelt),
            "without_gradients": self.without_gradients(),
            "localised": self.features_lines() if self.failed else [],
            "stopped": self.stopped,
        }

    def __str__(self):
        lines = [str(report) for report in self.failed]
        n = len(self.reports)
        passed = sum(report.passed for report in self.reports)
        stopped = ", stopped at the first failure" if self.stopped else ""
        lines.append(f"{self.name}: {passed} of {n} cases passed{stopped}")
        if self.remark:
            lines.append(self.remark)
        if self.absent:
            lines.append(f"not there, not checked: {', '.join(self.absent)}")
        lines += [f"is your {yours} meant to be {name}?" for name, yours in self.misspelt]
        if without := self.without_gradients():
            lines.append(f"not all gradients given: {', '.join(without)}")
        for reason, count in Counter(reason for _, reason in self.skipped).items():
            ids = [case for case, why in self.skipped if why == reason]
            lines.append(f"skipped, {count}, as {reason}: {', '.join(ids)}")
        if self.failed:
            first = self.first_operator()
            lines.append(f"begin with {first}, the lowest operator that fails: others are built on it")
            if absent := self.absent_arrays():
                return "\n".join([*lines, f"all that fails there is absent: {', '.join(absent)}"])
            lines += self.features_lines()
            suspects = self.suspects()[:3]
            if suspects:
                lines.append(f"what explains its failures best: {', '.join(suspects)}")
                lines += [f"  {flag}: {hint_of(flag)}" for flag in suspects[:2]]
        return "\n".join(lines)
