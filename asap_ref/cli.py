"""The command line, ``asap-ref COMMAND``: what a command does, ``asap-ref COMMAND --help`` says.

Nothing is overwritten without --force, and --quiet leaves only errors. A word that is not known is answered with the
near one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version

from asap_ref.lab import shell
from asap_ref.lab.shell import DATASETS, TRAINABLE, add_force, integer
from asap_ref.oracle.shell import add_commands
from asap_ref.support.arrays import MODULES
from asap_ref.support.outputs import check_files, check_folder
from asap_ref.support.words import Parser

BENCH_SECTIONS = (  # the keys of benchmark.SECTIONS
    *("frozen", "sharp", "uniform", "parts", "training", "small", "long", "compile", "memory", "reproduce"),
)


def main(argv=None):
    """Run the command line and return its exit code.

    0: done. 1: the oracle found a mistake. 2: a mistake of the caller, told in one line. 130: interrupted. 141: the
    reader of the output left.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Greek is no reason to lose an hour's work
    args = None
    try:
        try:
            args = build_parser().parse_args(argv)
            with _silence() if args.quiet else contextlib.nullcontext():
                code = args.run(args)
        finally:
            sys.stdout.flush()  # here, where a closed pipe can be told from a failure
    except KeyboardInterrupt:
        print("\nasap-ref: interrupted", file=sys.stderr)
        if getattr(args, "resume", None) is not None:
            print(f"finished epochs are kept in {args.out}; go on with --resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter complains on its way out
        return 141
    except (ValueError, TypeError, ArithmeticError, OSError, ModuleNotFoundError) as error:
        told = error
        if isinstance(error, OSError) and error.filename is not None:  # without the number of the system's
            told = f"{error.filename}: {error.strerror}"
        print(f"asap-ref: error: {told}", file=sys.stderr)
        return 2
    return code or 0


@contextlib.contextmanager
def _silence():
    """Let nothing be printed: what is to be said of errors is said behind it."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def build_parser():
    """Describe the commands."""
    parser = Parser(
        prog="asap-ref",
        description="ASAP, amortized doubly-stochastic attention, in readable NumPy.",
        **_ending_with("asap-ref reproduce --out asap-out", "asap-ref info"),
    )
    from asap_ref import __version__

    parser.add_argument("--version", action="version", version=f"asap-ref {__version__}")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=show_doors)
    commands = parser.add_subparsers(metavar="COMMAND")
    add_reproduce(commands)
    shell.add_commands(commands, add_command)
    for add in (add_bench, add_figures, add_oracle, add_info):
        add(commands)
    return parser


DOORS = """\
asap-ref: attention whose rows and columns sum to one, trained with Sinkhorn's loop and compiled into one pass.

  learn it        in a clone: pip install -e '.[tutorials]', then jupyter lab tutorials/
  run it          asap-ref reproduce --open       train, compile and compare on real data; --backend cupy for a GPU
                  asap-ref train --data own.npz   on data of your own
  check your own  asap-ref oracle check my_module.py

asap-ref --help lists all commands, asap-ref COMMAND --help explains one."""


def show_doors(args):
    """Say where to begin: what the command prints by itself."""
    print(DOORS)


def commands():
    """List the names of the commands."""
    (choices,) = (action.choices for action in build_parser()._actions if action.choices)
    return list(choices)


def add_command(commands, name, run, *examples, help):
    """Add a command, and what runs it if it has no commands of its own; its help ends with examples to copy."""
    parser = commands.add_parser(name, help=help, description=f"{help.capitalize()}.", **_ending_with(*examples))
    if run is not None:
        parser.set_defaults(run=run)
        quiet = {
            "action": "store_true",
            "default": argparse.SUPPRESS,
        }  # or it would undo the one before the command
        parser.add_argument("-q", "--quiet", help="print nothing but errors", **quiet)
    return parser


def _ending_with(*examples):
    """Settings of a parser whose help ends with examples, each on a line of its own."""
    epilog = "\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples])
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


# ------------------------------------------------------------------------- a command each, and what runs it


def add_reproduce(commands):
    """Describe ``asap-ref reproduce``."""
    parser = add_command(
        commands,
        "reproduce",
        run_reproduce,
        "asap-ref reproduce --open",
        "asap-ref reproduce --dataset digits --epochs 5 --out quick",
        "asap-ref reproduce --dataset digits --epochs 5 --out quick --resume",
        "asap-ref reproduce --dataset digits --attention sliced",
        "asap-ref reproduce --dataset matching --out matching",
        help="train on real data, compile, and compare the replacement with the teacher",
    )
    choices = (*DATASETS, "matching")
    parser.add_argument("--dataset", choices=choices, default="clouds", help="what to train on (%(default)s)")
    parser.add_argument("--out", default="asap-out", help="folder for report, figure and models (%(default)s)")
    parser.add_argument("--epochs", type=integer(1), help="training epochs (the data set's own)")
    parser.add_argument("--n-iter", type=integer(1), help="Sinkhorn iterations T (the data set's own)")
    parser.add_argument("--slices", type=integer(1), help="slice directions L (the data set's own)")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of weights and order (%(default)s)")
    parser.add_argument("--backend", choices=sorted(MODULES), default="numpy", help="array module (%(default)s)")
    parser.add_argument(
        "--attention",
        choices=TRAINABLE,
        nargs="+",
        default=(),
        help="train a model with these mechanisms too, at their default settings",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in the folder")
    parser.add_argument("--open", action="store_true", help="show the report in a browser when it is done")
    add_force(parser)


def run_reproduce(args):
    """Run ``asap-ref reproduce``."""
    way_out = "--resume goes on from its checkpoints, --force begins anew, another --out leaves it alone"
    written = ("*.checkpoint.npz", "report.*")
    check_folder(args.out, "--out", holds=written, force=args.force or args.resume, way_out=way_out)

    if args.dataset == "matching":  # clouds as well, but pairs of them, and a plan for an answer
        from asap_ref.lab.matching import matching_run
        from asap_ref.lab.matching_report import reproduce_matching

        if args.attention:
            raise ValueError(
                "--attention is not for --dataset matching, which trains through softmax and Sinkhorn"
            )
        changed = {name: getattr(args, name) for name in ("seed", "epochs", "n_iter", "slices", "backend")}
        reproduce_matching(matching_run(**changed), args.out, resume=args.resume)
        _show_report(args)
        return
    from asap_ref.lab.reproduce import ReproduceSettings, reproduce

    settings = ReproduceSettings(
        args.dataset,
        epochs=args.epochs,
        n_iter=args.n_iter,
        slices=args.slices,
        seed=args.seed,
        backend=args.backend,
        attention=tuple(args.attention),
    )
    reproduce(settings, args.out, resume=args.resume)
    _show_report(args)


def _show_report(args):
    """Open the page of the folder, where that was asked for."""
    if args.open:
        from asap_ref.lab.page import show

        show(os.path.join(args.out, "index.html"))


def add_bench(commands):
    """Describe ``asap-ref bench``."""
    parser = add_command(
        commands,
        "bench",
        run_bench,
        "asap-ref bench --quick",
        "asap-ref bench --out bench.json",
        "asap-ref bench --out bench.json --only training memory",
        help="time attention, training and memory side by side with other libraries",
    )
    parser.add_argument("--quick", action="store_true", help="a small part, within a minute")
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="SECTION",
        help=f"measure these, and leave the others as they are in the record: {', '.join(BENCH_SECTIONS)}",
    )
    parser.add_argument("--backend", choices=sorted(MODULES), default="numpy", help="array module (%(default)s)")
    parser.add_argument("--out", default="bench.json", help="where to write the record (%(default)s)")
    add_force(parser)


def run_bench(args):
    """Run ``asap-ref bench``."""
    check_files([args.out], "--out", force=args.force or bool(args.only))  # with --only the record is added to

    from asap_ref.lab.benchmark import bench

    bench(args.out, extent="quick" if args.quick else "default", only=tuple(args.only), backend=args.backend)


def add_figures(commands):
    """Describe ``asap-ref figures``."""
    parser = add_command(
        commands,
        "figures",
        run_figures,
        "asap-ref figures",
        "asap-ref figures reproduce --measure",
        help="draw the figures and tables of the repository again",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (all)")
    parser.add_argument(
        "--measure", action="store_true", help="run the measurements again, instead of the committed records"
    )


def run_figures(args):
    """Run ``asap-ref figures``."""
    from asap_ref.lab.gallery import regenerate

    regenerate(args.names, measure=args.measure)


def add_oracle(commands):
    """Describe ``asap-ref oracle``, whose own commands are in oracle/shell.py."""
    parser = add_command(
        commands,
        "oracle",
        None,
        "asap-ref oracle list",
        "asap-ref oracle check my_module.py",
        help="check an implementation elsewhere against inputs, outputs and gradients that are right",
    )
    add_commands(parser, add_command)


def add_info(commands):
    """Describe ``asap-ref info``."""
    add_command(commands, "info", run_info, "asap-ref info", help="print versions and the array modules found")


def run_info(args):
    """Run ``asap-ref info``."""
    from asap_ref import __version__

    print(f"asap-ref {__version__}, Python {sys.version.split()[0]}")
    for name in ("numpy", "scipy", "array-api-compat", "scikit-learn", "matplotlib"):
        print(f"  {name} {_version_of(name)}")
    print("array modules:")
    for module in ("numpy", "cupy", "torch", "jax", "array_api_strict"):
        found = importlib.util.find_spec(module) is not None
        print(f"  {module}: {_version_of(module) if found else 'not installed'}")


def _version_of(module):
    for distribution in (module, module.replace("_", "-"), "cupy-cuda12x", "cupy-cuda13x"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "found"
