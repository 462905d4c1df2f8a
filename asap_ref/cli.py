"""The command line: ``asap-ref reproduce | compile | figures | info``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version

from asap_ref.arrays import MODULES

DATASETS = ("digits",)  # the keys of experiments.EXPERIMENTS, whose import would slow down --help


def main(argv=None):
    """Run the command line and return its exit code: 0 done, 2 a mistake of the caller, 130 interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("\nasap-ref: interrupted", file=sys.stderr)
        if getattr(args, "resume", None) is not None:
            print(f"finished epochs are kept in {args.out}; go on with --resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        print(f"asap-ref: error: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser():
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        prog="asap-ref",
        description="ASAP, amortized doubly-stochastic attention, in readable NumPy.",
        epilog="example: asap-ref reproduce --out asap-out",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reproduce = commands.add_parser(
        "reproduce",
        help="train on real data, compile, and compare the replacement with the teacher",
        epilog="example: asap-ref reproduce --epochs 5 --out quick; interrupted? the same line with --resume",
    )
    reproduce.set_defaults(run=run_reproduce)
    reproduce.add_argument("--dataset", choices=DATASETS, default="digits", help="what to train on (%(default)s)")
    reproduce.add_argument("--out", default="asap-out", help="folder for report, figure and models (%(default)s)")
    reproduce.add_argument("--epochs", type=positive, help="training epochs (the data set's own)")
    reproduce.add_argument("--n-iter", type=positive, help="Sinkhorn iterations T (the data set's own)")
    reproduce.add_argument("--slices", type=positive, help="slice directions L (the data set's own)")
    reproduce.add_argument("--seed", type=int, default=0, help="seed of weights and order (%(default)s)")
    reproduce.add_argument(
        "--backend", choices=sorted(MODULES), default="numpy", help="array module (%(default)s)"
    )
    reproduce.add_argument("--resume", action="store_true", help="go on from the checkpoints in the folder")

    compile_ = commands.add_parser(
        "compile",
        help="replace the Sinkhorn attention of a saved model by ASAP",
        epilog="example: asap-ref compile asap-out/sinkhorn.npz compiled.npz --slices 32",
    )
    compile_.set_defaults(run=run_compile)
    compile_.add_argument("model", help="a Transformer trained with Sinkhorn attention, .npz")
    compile_.add_argument("compiled", help="where to write the compiled model, .npz")
    compile_.add_argument(
        "--dataset", choices=DATASETS, default="digits", help="whose training split calibrates (%(default)s)"
    )
    compile_.add_argument("--slices", type=positive, help="slice directions L (the data set's own)")
    compile_.add_argument("--seed", type=int, default=0, help="seed of the directions (%(default)s)")

    figures = commands.add_parser(
        "figures",
        help="draw the figures and tables of the repository again",
        epilog="example: asap-ref figures reproduce --measure",
    )
    figures.set_defaults(run=run_figures)
    figures.add_argument("names", nargs="*", metavar="NAME", help="which ones (all)")
    figures.add_argument(
        "--measure", action="store_true", help="run the measurements again, instead of the committed records"
    )

    info = commands.add_parser("info", help="print versions and the array modules found")
    info.set_defaults(run=run_info)
    return parser


def positive(text):
    """Parse an integer of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def run_reproduce(args):
    """Run ``asap-ref reproduce``."""
    from asap_ref.reproduce import ReproduceSettings, reproduce

    settings = ReproduceSettings(
        args.dataset,
        epochs=args.epochs,
        n_iter=args.n_iter,
        slices=args.slices,
        seed=args.seed,
        backend=args.backend,
    )
    reproduce(settings, args.out, resume=args.resume)


def run_compile(args):
    """Run ``asap-ref compile``."""
    from asap_ref.compilation import compile_model
    from asap_ref.experiments import experiment
    from asap_ref.transformer import Transformer

    model = Transformer.load(args.model)
    run = experiment(args.dataset, seed=args.seed, slices=args.slices)
    compiled, report = compile_model(model, [run.load().train_inputs], **run.compilation)
    compiled.save(args.compiled)
    for layer in report:
        shares = ", ".join(f"{r:.3f}" for r in layer["r_squared"])
        print(f"layer {layer['layer']}: R² of the query dual, by head: {shares}")
    print(f"wrote {args.compiled}")


def run_figures(args):
    """Run ``asap-ref figures``."""
    from asap_ref.gallery import regenerate

    regenerate(args.names, measure=args.measure)


def run_info(args):
    """Run ``asap-ref info``."""
    packages = {"numpy": "numpy", "cupy": "cupy", "torch": "torch", "jax": "jax", "array_api_strict": None}
    print(f"asap-ref {version('asap-ref')}, Python {sys.version.split()[0]}")
    for name in ("numpy", "scipy", "array-api-compat", "scikit-learn", "matplotlib"):
        print(f"  {name} {version(name)}")
    print("array modules:")
    for module in packages:
        found = importlib.util.find_spec(module) is not None
        print(f"  {module}: {_version_of(module) if found else 'not installed'}")


def _version_of(module):
    for distribution in (module, module.replace("_", "-"), "cupy-cuda12x", "cupy-cuda13x"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "found"
