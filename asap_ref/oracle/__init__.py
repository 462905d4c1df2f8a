"""The oracle: inputs, expected outputs and gradients from which an implementation elsewhere learns whether it is right.

    from asap_ref import oracle

    for case in oracle.cases("sinkhorn"):
        print(oracle.check(case, my_sinkhorn(**case.inputs, **case.arguments)))

README.md beside this file describes the vectors for readers in any language.
"""

from asap_ref.oracle import reference
from asap_ref.oracle.adapter import check_module, load_module, run_case
from asap_ref.oracle.fuzzing import fuzz, random_case
from asap_ref.oracle.module_report import ModuleReport
from asap_ref.oracle.shrinking import shrink
from asap_ref.oracle.stored import Case, case, cases, flags, operators, parametrize
from asap_ref.oracle.verdict import Report, check

__all__ = [
    "Case",
    "ModuleReport",
    "Report",
    "case",
    "cases",
    "check",
    "check_module",
    "flags",
    "fuzz",
    "load_module",
    "operators",
    "parametrize",
    "random_case",
    "reference",
    "run_case",
    "shrink",
]
