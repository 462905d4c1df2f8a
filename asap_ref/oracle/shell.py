"""``asap-ref oracle list | show | check | export``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from asap_ref.oracle.adapter import check_module
from asap_ref.oracle.case import VECTORS, VERSIONS, case, cases, flags, operators
from asap_ref.oracle.check import DTYPES


def add_commands(parser, make):
    """Describe the commands to a parser; ``make`` makes a parser with examples."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    list_ = make(
        commands.add_parser,
        "asap-ref oracle list --operator sinkhorn",
        "asap-ref oracle list --flag padding --flag fully_masked",
        name="list",
        help="list cases, with what is particular about them and the mistakes they catch",
    )
    list_.set_defaults(run=run_list)

    show = make(
        commands.add_parser,
        "asap-ref oracle show sinkhorn/epsilon",
        name="show",
        help="print a case: arguments, arrays, tolerances, hints",
    )
    show.set_defaults(run=run_show)
    show.add_argument("case", help="its id, as listed")

    check = make(
        commands.add_parser,
        "asap-ref oracle check my_package.my_module",
        "asap-ref oracle check my_file.py --operator sinkhorn --dtype float32 -x",
        name="check",
        help="check a module whose functions are named as the operators; exit with 1 if a case fails",
    )
    check.set_defaults(run=run_check)
    check.add_argument("module", help="name of a module, or path of a .py file")
    check.add_argument("--dtype", choices=DTYPES, default="float64", help="what to compute in (%(default)s)")
    check.add_argument("--version", type=int, choices=VERSIONS, help="only the cases of this version (all)")
    check.add_argument("--require-gradients", action="store_true", help="fail where a gradient is not given")
    check.add_argument("-x", "--stop", action="store_true", help="stop at the first case that fails")
    check.add_argument("--json", action="store_true", help="print the report as JSON")

    for command in (list_, check):
        command.add_argument("--operator", choices=list(operators()), metavar="OPERATOR", help="only this one")
        command.add_argument("--flag", action="append", choices=list(flags()), metavar="FLAG", help="only these")

    export = make(
        commands.add_parser,
        "asap-ref oracle export vectors",
        name="export",
        help="copy vectors, manifest and their description to a folder, for other languages",
    )
    export.set_defaults(run=run_export)
    export.add_argument("folder", type=Path)


def run_list(args):
    """Run ``asap-ref oracle list``."""
    found = cases(args.operator, args.flag)
    for one in found:
        print(f"{one.id:<45} {one.note}  [{', '.join(one.flags)}]")
    print(f"{len(found)} cases")


def run_show(args):
    """Run ``asap-ref oracle show``."""
    one = case(args.case)
    print(f"{one.id}: {one.note}")
    for name, value in one.arguments.items():
        print(f"  argument     {name} = {json.dumps(value)}")
    for group in ("inputs", "outputs", "intermediates", "cotangents", "gradients"):
        for name, x in getattr(one, group).items():
            rule = one.rules.get(group, {}).get(name, {}) if group in ("outputs", "gradients") else {}
            tolerance = ", ".join(f"{dtype} {t:.2g}" for dtype, t in rule.get("tolerance", {}).items())
            shape = " x ".join(map(str, x.shape)) or "a number"
            print(f"  {group:<12} {name}: {shape}" + (f"; tolerance {tolerance}" if tolerance else ""))
    print(f"  source       {one.source}")
    print(f"  confirmed by {one.second_source}")
    for line in one.hint.splitlines():
        print(f"  catches      {line}")
    print(f"  file         {one.path}")


def run_check(args):
    """Run ``asap-ref oracle check``; 1 if a case fails."""
    report = check_module(
        args.module,
        operator=args.operator,
        flags=args.flag,
        dtype=args.dtype,
        version=args.version,
        require_gradients=args.require_gradients,
        stop_at_first=args.stop,
        on_report=Progress(),
    )
    print(json.dumps(report.as_dict(), indent=1) if args.json else report)
    return 0 if report.passed else 1


class Progress:
    """One line on stderr that says how far the check is: rewritten on a terminal, else a line an operator."""

    def __init__(self):
        self.failed, self.operator = 0, None

    def __call__(self, done, n, report):
        """Tell of one more case."""
        self.failed += not report.passed
        operator = report.case.operator
        text = f"{done} of {n} cases, {self.failed} failed: {operator}"
        if sys.stderr.isatty():
            print(f"\r{text:<70}", end="\n" if done == n else "", file=sys.stderr, flush=True)
        elif operator != self.operator:
            print(text, file=sys.stderr, flush=True)
        self.operator = operator


def run_export(args):
    """Run ``asap-ref oracle export``."""
    if args.folder.exists() and any(args.folder.iterdir()):
        raise FileExistsError(f"{args.folder} is not empty; name a new folder")
    shutil.copytree(VECTORS / "v1", args.folder, dirs_exist_ok=True)
    for page in ("README.md", "CASES.md"):
        shutil.copy(VECTORS.parent / page, args.folder / page)
    print(f"wrote {len(cases())} cases to {args.folder}; README.md there describes them")
