"""``asap-ref oracle list | show | check | random | fuzz | new | check-files | export``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from asap_ref.oracle import exchange, results
from asap_ref.oracle.adapter import check_module, resolved, run_case, why_not
from asap_ref.oracle.fuzzing import fuzz, random_case
from asap_ref.oracle.recipe import AXES, FAMILIES, LAYOUTS, MASKS, SIDES, VALUES
from asap_ref.oracle.shrinking import SIZES, shrink
from asap_ref.oracle.starter import FRAMEWORKS, write_starter
from asap_ref.oracle.stored import VERSIONS, case, cases, flags, operators, read_cases
from asap_ref.oracle.verdict import DTYPES
from asap_ref.support.outputs import check_folder


def add_commands(parser, add):
    """Describe the commands to a parser; ``add`` adds one, with what runs it and examples."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, text, *examples):
        return add(commands, name, run, *examples, help=text)

    list_ = command(
        "list",
        run_list,
        "list cases, with what is particular about them and the mistakes they catch",
        "asap-ref oracle list --operator sinkhorn",
        "asap-ref oracle list --flag padding --flag fully_masked",
    )
    show = command(
        "show",
        run_show,
        "print a case: arguments, arrays, tolerances, hints",
        "asap-ref oracle show sinkhorn/epsilon",
    )
    show.add_argument("case", help="its id, as listed")

    new = command("new", run_new, "write a starter adapter", "asap-ref oracle new my_layer.py --framework torch")
    new.add_argument("file", type=Path, help="a new .py file")
    new.add_argument("--framework", choices=list(FRAMEWORKS), default="numpy", help="(%(default)s)")

    check = command(
        "check",
        run_check,
        "check a module whose functions are named as the operators; exit with 1 if a case fails",
        "asap-ref oracle check my_package.my_module",
        "asap-ref oracle check my_file.py --operator sinkhorn --dtype float32 -x",
    )
    check.add_argument("module", help="name of a module, or path of a .py file")
    check.add_argument("--version", type=int, choices=VERSIONS, help="only the cases of this version (all)")
    check.add_argument("-x", "--stop", action="store_true", help="stop at the first case that fails")

    random = command(
        "random",
        run_random,
        "draw a case of any size from a seed; check a module with it, and shrink it if it fails",
        "asap-ref oracle random sinkhorn my_file.py --n 129 --m 257 --mask left --dtype float32 --seed 3",
        "asap-ref oracle random attend --n 65 --d 80 --save folder",
    )
    random.add_argument("operator", choices=list(AXES), metavar="OPERATOR", help=", ".join(AXES))
    random.add_argument("module", nargs="?", help="what to check; without it the case is only shown")
    for size in SIZES:
        random.add_argument(f"--{size.replace('_', '-')}", type=int, help=SIZE_HELP[size])
    for name, choices in (("mask", MASKS), ("side", SIDES), ("values", VALUES), ("layout", LAYOUTS),
                          ("padding", ("100", "nan")), ("only", ("none", *FAMILIES))):  # fmt: skip
        random.add_argument(f"--{name}", choices=choices)
    random.add_argument("--give", action="append", metavar="ARRAY", help="an optional array: init, basis, ...")
    random.add_argument("--set", action="append", metavar="NAME=VALUE", help="an argument: epsilon=0.5")
    random.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    random.add_argument("--save", type=Path, metavar="FOLDER", help="write it, for other languages")

    fuzz_ = command(
        "fuzz",
        run_fuzz,
        "draw cases for a time, edges first, and show the smallest that fails for each operator",
        "asap-ref oracle fuzz my_file.py --seconds 60 --dtype bfloat16",
        "asap-ref oracle fuzz my_file.py --rounds 20 --seed 7",
        "asap-ref oracle fuzz my_file.py --operator attend --tile 1024",
    )
    fuzz_.add_argument("module", help="name of a module, or path of a .py file")
    fuzz_.add_argument("--seconds", type=float, default=60.0, help="how long (%(default)s)")
    fuzz_.add_argument("--rounds", type=int, help="how many cases of each operator, in place of a time")
    fuzz_.add_argument("--tile", type=int, metavar="N", help="sizes N-1, N, N+1 and 2N+1, in place of up to 600")
    fuzz_.add_argument("--seed", type=int, default=0, help="another one draws other cases (%(default)s)")

    files = command(
        "check-files",
        run_check_files,
        "check results that another program wrote: FOLDER/<operator>/<case>/<output>.npy",
        "asap-ref oracle check-files results --dtype float32",
        "asap-ref oracle check-files results --stored-only",
    )
    files.add_argument("folder", type=Path)
    files.add_argument(
        "--vectors",
        type=Path,
        metavar="FOLDER",
        help="with a manifest.json: only its cases, as of `random --save`",
    )
    files.add_argument(
        "--stored-only", action="store_true", help="do not ask for the cases that are drawn: small ones only"
    )
    files.add_argument("--dtype", choices=DTYPES, help="what was computed in (read off the files)")

    export = command(
        "export",
        run_export,
        "copy vectors, manifests and their description to a folder, for other languages",
        "asap-ref oracle export vectors --drawn float32",
    )
    export.add_argument("folder", type=Path)
    export.add_argument("--drawn", choices=DTYPES, help="write the cases drawn from seeds as well, for this dtype")

    for each in (new, random, export):
        each.add_argument("--force", action="store_true", help="write over what is there already")
    for each in (check, random, fuzz_):
        each.add_argument("--dtype", choices=DTYPES, default="float64", help="what to compute in (%(default)s)")
    for each in (list_, check, fuzz_):
        each.add_argument("--operator", choices=list(operators()), metavar="OPERATOR", help="only this one")
    for each in (list_, check):
        each.add_argument("--flag", action="append", choices=list(flags()), metavar="FLAG", help="only these")
    for each in (check, random, files):
        each.add_argument("--require-gradients", action="store_true", help="fail where a gradient is not given")
    for each in (check, fuzz_, files):
        each.add_argument("--json", action="store_true", help="print the report as JSON")


SIZE_HELP = {
    "n": "queries",
    "m": "keys",
    "batch": "0 for no such axis",
    "heads": "0 for no such axis",
    "d": "dimension of a head",
    "p": "dimension of the values",
    "n_slices": "directions",
    "rank": "of a basis",
}


def run_list(args):
    """Run ``asap-ref oracle list``."""
    found = cases(args.operator, args.flag)
    for one in found:
        print(f"{one.id:<45} {one.note}  [{', '.join(one.flags)}]")
    print(f"{len(found)} cases")


def run_show(args):
    """Run ``asap-ref oracle show``."""
    show(case(args.case))


def show(one):
    """Print a case."""
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
    print(f"  file         {one.path or 'none: it is drawn when it is asked for'}")


def run_new(args):
    """Run ``asap-ref oracle new``."""
    write_starter(args.file, args.framework, force=args.force)
    print(f"wrote {args.file}; now: asap-ref oracle check {args.file}")


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
    return told(report, args.json)


def told(report, as_json):
    """Print a report; 1 if it did not pass."""
    print(json.dumps(report.as_dict(), indent=1) if as_json else report)
    return 0 if report.passed else 1


def run_random(args):
    """Run ``asap-ref oracle random``; 1 if the case fails."""
    names = (*SIZES, "mask", "side", "values", "layout", "padding", "only")
    said = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    arguments = dict(_setting(text) for text in args.set or ())
    drawn = random_case(args.operator, **said, given=tuple(args.give or ()), arguments=arguments, seed=args.seed)
    if args.save:
        check_folder(args.save, "--save", holds=["manifest.json"], force=args.force)
        exchange.save_cases(args.save, [drawn], args.dtype)
        print(f"wrote {args.save / drawn.id}.npz and {args.save / 'manifest.json'}")
        (saved,) = read_cases(args.save)
    if reason := why_not(drawn, args.dtype):
        print(f"not asked, as {reason}: {drawn.note}")
        return 0
    if args.module is None:
        show(saved if args.save else drawn.at(args.dtype))
        return 0
    module, _ = resolved(args.module)
    report = run_case(module, drawn, dtype=args.dtype, require_gradients=args.require_gradients)
    print(report)
    if report.passed:
        return 0
    least = shrink(module, drawn, dtype=args.dtype)
    if least.recipe != drawn.recipe:
        print("the smallest that still fails:")
        print(run_case(module, least, dtype=args.dtype))
    return 1


def _setting(text):
    """``epsilon=0.5`` as a name and a value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"oracle random: --set takes NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError:
        return name, value


def run_fuzz(args):
    """Run ``asap-ref oracle fuzz``; 1 if a case fails."""
    report = fuzz(
        args.module,
        seconds=args.seconds,
        rounds=args.rounds,
        operator=args.operator,
        dtype=args.dtype,
        seed=args.seed,
        tile=args.tile,
        on_report=Progress(),
    )
    return told(report, args.json)


def run_check_files(args):
    """Run ``asap-ref oracle check-files``; 1 if a case fails or is not there."""
    report = results.check_files(
        args.folder,
        vectors=args.vectors,
        dtype=args.dtype,
        require_gradients=args.require_gradients,
        stored_only=args.stored_only,
        on_report=Progress(),
    )
    return told(report, args.json)


class Progress:
    """One line on stderr that says how far the check is: rewritten on a terminal, else a line an operator."""

    def __init__(self):
        self.failed, self.operator = 0, None

    def __call__(self, done, n, report):
        """Tell of one more case."""
        self.failed += not report.passed
        operator = report.case.operator
        text = f"{done} of {n} cases" if n else f"{done} cases"
        text += f", {self.failed} failed: {operator}"
        if sys.stderr.isatty():
            print(f"\r{text:<70}", end="\n" if done == n else "", file=sys.stderr, flush=True)
        elif operator != self.operator and (n or done % 100 == 1):
            print(text, file=sys.stderr, flush=True)
        self.operator = operator


def run_export(args):
    """Run ``asap-ref oracle export``."""
    count = exchange.export(args.folder, args.drawn, force=args.force)
    print(f"wrote {count} cases to {args.folder}; README.md there describes them")
