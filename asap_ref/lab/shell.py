"""``asap-ref train | advise | compile | fidelity | predict``: from data, of one's own above all, to predictions.

What computes is imported when it is needed, so that ``asap-ref --help`` is quick.
"""

from __future__ import annotations

import argparse
import sys

from asap_ref.support.arrays import MODULES
from asap_ref.support.outputs import check_files

DATASETS = (
    "clouds",
    "digits",
    "r8",
    "topics",
)  # the keys of experiments.EXPERIMENTS, whose import would slow down --help
TRAINABLE = ("softmax", "sinkhorn", "sliced", "initial", "over-relaxed", "dual-softmax")  # that need no amortizer


def add_commands(commands, add_command):
    """Describe the five commands."""
    for add in (add_train, add_advise, add_compile, add_fidelity, add_predict):
        add(commands, add_command)


def integer(least):
    """Return a parser of integers of at least ``least``."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return value

    return parse


def add_force(parser):
    """Describe the option that lets files be written over."""
    parser.add_argument("--force", action="store_true", help="write over what is there already")


def add_data(parser, does, split):
    """Let a command take a data set by name, or a file of one's own."""
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--dataset", choices=DATASETS, default="clouds", help=f"whose {split} split {does} (%(default)s)"
    )
    given.add_argument("--data", metavar="FILE", help=f"a file as for asap-ref train, whose {split} split {does}")


# ------------------------------------------------------------------------- a command each, and what runs it


def add_train(commands, add_command):
    """Describe ``asap-ref train``."""
    parser = add_command(
        commands,
        "train",
        run_train,
        "asap-ref train --data own.npz --out model.npz",
        "asap-ref train --data cloud.npz --set --epochs 50",
        "asap-ref train --data texts.csv --epochs 6",
        help="train a classifier on data of your own; a tenth of it is kept for testing",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=".npz of X (N, tokens, features) and y (N,), with mask (N, tokens) or lengths (N,) where some are padded; "
        "or .csv or .tsv with columns text and label",
    )
    parser.add_argument("--out", default="model.npz", help="where to write the model (%(default)s)")
    parser.add_argument("--attention", choices=TRAINABLE, default="sinkhorn", help="mechanism (%(default)s)")
    parser.add_argument("--n-iter", type=integer(1), default=10, help="Sinkhorn iterations T (%(default)s)")
    parser.add_argument("--epochs", type=integer(1), default=30, help="training epochs (%(default)s)")
    parser.add_argument("--width", type=integer(1), default=48, help="width of a token (%(default)s)")
    parser.add_argument("--layers", type=integer(1), default=2, help="number of layers (%(default)s)")
    parser.add_argument("--heads", type=integer(1), default=4, help="heads of a layer (%(default)s)")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of weights and order (%(default)s)")
    parser.add_argument(
        "--set", action="store_true", help="the order of X means nothing, as in a cloud of points: no positions"
    )
    parser.add_argument(
        "--vocabulary", type=integer(3), default=6000, help="most token ids of a text (%(default)s)"
    )
    parser.add_argument("--length", type=integer(1), default=96, help="most words of a text (%(default)s)")
    add_force(parser)


def run_train(args):
    """Run ``asap-ref train``."""
    check_files([args.out], "--out", force=args.force)

    from asap_ref.lab.own_data import to_train, warn_of_sizes
    from asap_ref.model.architecture import Architecture
    from asap_ref.model.mechanism import Attention
    from asap_ref.model.optimiser import TrainingSettings
    from asap_ref.model.training import accuracy, train
    from asap_ref.model.transformer import Transformer

    data = to_train(args.data, vocabulary=args.vocabulary, length=args.length)
    inputs = data.train_inputs
    if data.vocabulary:
        reads = {"vocabulary": len(data.vocabulary) + 2, "length": args.length}
    else:
        reads = {"features": inputs.shape[2], "length": None if args.set else inputs.shape[1]}
        warn_of_sizes(inputs)
    sizes = {"n_classes": len(data.classes), "width": args.width, "n_layers": args.layers, "n_heads": args.heads}
    settings = {"n_iter": args.n_iter} if args.attention == "sinkhorn" else {}
    model = Transformer.create(
        Architecture(**reads, **sizes),
        Attention(args.attention, settings),
        seed=args.seed,
        classes=data.classes,
        words=data.vocabulary,
    )
    training = TrainingSettings(epochs=args.epochs, seed=args.seed)
    model, _ = train(model, inputs, data.train_labels, training, label=f"train {args.attention}")
    model.save(args.out)
    right = accuracy(model, data.test_inputs, data.test_labels)
    print(
        f"{len(inputs)} examples trained, {len(data.test_labels)} kept for testing: {right:.1%} of these are right"
    )
    print(f"wrote {args.out}")


def add_advise(commands, add_command):
    """Describe ``asap-ref advise``."""
    parser = add_command(
        commands,
        "advise",
        run_advise,
        "asap-ref advise model.npz --data own.npz",
        "asap-ref advise asap-out/sinkhorn.npz --dataset clouds --length 1024 --error 0.02",
        "asap-ref advise model.npz --data own.npz --out chosen.npz",
        help="measure what can replace the attention of a model, here and at your length, and say what is cheapest",
    )
    parser.add_argument("model", help="a Transformer trained with Sinkhorn attention, or compiled from one, .npz")
    add_data(parser, "it is judged on (the training split calibrates)", "test")
    parser.add_argument("--length", type=integer(1), metavar="N", help="cut sequences to N tokens (as they are)")
    parser.add_argument(
        "--error", type=float, default=0.05, help="how far outputs may be from the teacher's (%(default)s)"
    )
    parser.add_argument("--backend", choices=sorted(MODULES), default="numpy", help="array module (%(default)s)")
    parser.add_argument(
        "--out", metavar="FILE", help="also write the cheapest model of which every head is within the error, .npz"
    )
    add_force(parser)


def run_advise(args):
    """Run ``asap-ref advise``."""
    if args.out is not None:
        check_files([args.out], "--out", force=args.force)

    from asap_ref.lab.advice import advise, of_length, some_of
    from asap_ref.lab.experiments import experiment
    from asap_ref.lab.machine import machine
    from asap_ref.lab.own_data import for_model
    from asap_ref.lab.runs import calibration_batches, whole_batches
    from asap_ref.model.batching import trimmed
    from asap_ref.model.transformer import load_model

    model = load_model(args.model, backend=args.backend)
    if args.length is not None and model.architecture.kind == "images":
        raise ValueError(f"--length: the model reads images, of {model.architecture.n_tokens} tokens each")
    if args.data is None:
        run = experiment(args.dataset)
        data = run.load()
        inputs, calibration = data.test_inputs, calibration_batches(run, data)
        if run.points is not None and args.length is not None:  # a cloud can be drawn with any number of points
            inputs = run.test_inputs(data, args.length)
    else:
        data = for_model(args.data, model)
        inputs, calibration = data.test_inputs, whole_batches(data.train_inputs)
    inputs = trimmed(inputs) if args.length is None else of_length(inputs, args.length)
    tokens = model.architecture.n_tokens if model.architecture.kind == "images" else inputs.shape[1]
    found = advise(model, some_of(inputs, tokens), calibration, error=args.error)
    print(f"{found.markdown()}\n{found.sentence()}\n")
    print(f"Medians of interleaved calls of the attention of all layers; {machine()['processor']}.")
    if args.out is not None:
        found.models[found.cheapest(every_head=True)].save(args.out)
        print(f"wrote {args.out}")


def add_compile(commands, add_command):
    """Describe ``asap-ref compile``."""
    parser = add_command(
        commands,
        "compile",
        run_compile,
        "asap-ref compile asap-out/sinkhorn.npz compiled.npz --slices 32",
        "asap-ref compile model.npz compiled.npz --data own.npz",
        help="replace the Sinkhorn attention of a saved model by ASAP",
    )
    parser.add_argument("model", help="a Transformer trained with Sinkhorn attention, .npz")
    parser.add_argument("compiled", help="where to write the compiled model, .npz")
    add_data(parser, "calibrates", "training")
    parser.add_argument("--slices", type=integer(1), help="slice directions L (the data set's own)")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of the directions (%(default)s)")
    parser.add_argument(
        "--fallback",
        type=float,
        metavar="ERROR",
        help="leave heads to Sinkhorn whose held-out attention output is off by more than this share",
    )
    add_force(parser)


def run_compile(args):
    """Run ``asap-ref compile``."""
    check_files([args.compiled], "compile", force=args.force)

    from asap_ref.lab.experiments import experiment
    from asap_ref.lab.own_data import for_model
    from asap_ref.lab.runs import calibration_batches, whole_batches
    from asap_ref.model.compilation import compile_model
    from asap_ref.model.transformer import Transformer

    model = Transformer.load(args.model)
    if args.data is None:
        run = experiment(args.dataset, seed=args.seed, slices=args.slices)
        calibration, settings = calibration_batches(run, run.load()), run.compilation
    else:
        calibration = whole_batches(for_model(args.data, model).train_inputs)
        settings = {"seed": args.seed} | ({} if args.slices is None else {"n_slices": args.slices})
    compiled, report = compile_model(model, calibration, fallback=args.fallback, **settings)
    compiled.save(args.compiled)
    for layer in report:
        shares = ", ".join(f"{r:.3f}" for r in layer["r_squared"])
        print(f"layer {layer['layer']}: R² of the query dual, by head: {shares}")
        if layer.get("on_sinkhorn"):
            print(f"layer {layer['layer']}: left to Sinkhorn: heads {', '.join(map(str, layer['on_sinkhorn']))}")
    print(f"wrote {args.compiled}")


def add_fidelity(commands, add_command):
    """Describe ``asap-ref fidelity``."""
    parser = add_command(
        commands,
        "fidelity",
        run_fidelity,
        "asap-ref fidelity asap-out/asap.npz --out fidelity",
        "asap-ref fidelity asap-out/asap.npz --dataset clouds --worse-than 0.1",
        "asap-ref fidelity compiled.npz --data own.npz",
        help="report how faithful each head of a compiled model is to its Sinkhorn teacher, on test data",
    )
    parser.add_argument("model", help="a compiled Transformer, .npz")
    add_data(parser, "it is judged on", "test")
    parser.add_argument(
        "--worse-than",
        type=float,
        default=0.1,
        metavar="ERROR",
        help="name heads whose output error is larger (%(default)s)",
    )
    parser.add_argument("--out", metavar="STEM", help="also write STEM.md, STEM.svg, STEM.png and STEM.npz")
    add_force(parser)


def run_fidelity(args):
    """Run ``asap-ref fidelity``."""
    if args.out is not None:
        check_files([f"{args.out}.{end}" for end in ("md", "svg", "png", "npz")], "--out", force=args.force)

    from asap_ref.fidelity.report import fidelity_report
    from asap_ref.lab.experiments import experiment
    from asap_ref.lab.own_data import for_model
    from asap_ref.lab.runs import sample
    from asap_ref.model.transformer import Transformer

    model = Transformer.load(args.model)
    run = experiment(args.dataset)
    data, most = (run.load(), run.lengths[0].sampled) if args.data is None else (for_model(args.data, model), 100)
    report = fidelity_report(model, sample(data.test_inputs, most))
    print(report.markdown())
    worse = report.worse_than(args.worse_than)
    named = ", ".join(f"layer {layer} head {head}" for layer, head in worse) or "none"
    print(f"heads whose output is off by more than {args.worse_than}, worst first: {named}")
    if args.out is not None:
        print(f"wrote {', '.join(str(path) for path in report.write(args.out))}")


def add_predict(commands, add_command):
    """Describe ``asap-ref predict``."""
    parser = add_command(
        commands,
        "predict",
        run_predict,
        "asap-ref predict compiled.npz --data own.npz",
        "asap-ref predict compiled.npz --data texts.csv --out predicted.csv",
        help="say the class of each example of a file, and how sure a model is",
    )
    parser.add_argument("model", help="a Transformer, compiled or not, .npz")
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="as for asap-ref train; labels may be missing"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="where to write label and probability, .csv (they are printed)"
    )
    add_force(parser)


def run_predict(args):
    """Run ``asap-ref predict``."""
    if args.out is not None:
        check_files([args.out], "--out", force=args.force)

    from asap_ref.lab.own_data import all_of, for_model, table_of_predictions
    from asap_ref.model.training import predict
    from asap_ref.model.transformer import Transformer
    from asap_ref.support import files

    model = Transformer.load(args.model)
    inputs, labels = all_of(for_model(args.data, model))
    logits = predict(model, inputs)
    table = table_of_predictions(logits, model.classes)
    if args.out is None:
        print(table, end="")
    else:
        files.save_text(args.out, table)
        print(f"wrote {args.out}")
    if labels.min() >= 0:
        right = (logits.argmax(-1) == labels).mean()
        print(f"{len(labels)} examples, {right:.1%} of their labels predicted", file=sys.stderr)
