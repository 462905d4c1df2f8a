"""The command: what it writes, how it resumes, and what it says of mistakes.

Most calls run in this process, where a call costs what it does and not the import of everything, and on few of the
digits, which shows all that is asked of the command here. No limit of time is set that a busy machine could break:
HANGS only ends what would never end.
"""

import contextlib
import html
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import few_digits
import numpy as np
import pytest
from tallies import MISTAKES, REFUSED, note

from asap_ref import cli
from asap_ref.fidelity.comparison import compare_attentions
from asap_ref.lab.advice import some_of
from asap_ref.model.transformer import Transformer

ATTENTIONS = ["softmax", "sinkhorn", "sinkhorn-1", "sinkhorn-2", "sinkhorn-3", "sinkhorn-4", "sinkhorn-5", "asap"]
RIVALS = [
    *("initial-zero", "initial-gaussian", "initial-sorting"),
    *(f"over-relaxed-softmax-{t}" for t in (1, 2, 3)),
    *(f"over-relaxed-gaussian-{t}" for t in (1, 2)),
    *("dual-softmax", "asap-refined", "asap-one-pass", "one-sided"),
]
COLUMNS = {
    "judged",
    "n",
    "attention",
    "accuracy",
    "agreement",
    "output_error",
    "column_error",
    "ms_per_forward",
    "speedup",
}
COLUMNS |= {"speedup_log_domain"}
DIGITS = ("--dataset", "digits")


COMMAND = Path(sys.executable).with_name("asap-ref")  # as pip installed it, beside the interpreter


HANGS = 3600


def installed(*arguments, **options):
    """Run the installed command, in a process of its own."""
    assert COMMAND.exists(), "the command is not installed: pip install -e ."
    options = {"capture_output": True, "text": True, "timeout": HANGS, "check": False} | options
    return subprocess.run([COMMAND, *arguments], **options)


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def asap_ref(*arguments, cwd=None, env=None):
    """Run the command in this process, on few digits."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(few_digits.instead())
        stack.enter_context(mock.patch.dict(os.environ, env or {}))
        stack.enter_context(contextlib.chdir(cwd or "."))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse, after help and mistakes
            code = left.code
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("short run")  # with a blank, as people have
    done = asap_ref("reproduce", *DIGITS, "--epochs", "2", "--n-iter", "6", "--slices", "8", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done


def test_without_a_command_it_says_where_to_begin():
    done = asap_ref()
    assert done.returncode == 0
    for door in ("jupyter lab tutorials/", "asap-ref reproduce", "asap-ref oracle check"):
        assert door in done.stdout


def test_reproduce_writes_report_figure_and_models(short_run):
    out, done = short_run
    report = json.loads((out / "report.json").read_text())
    assert [row["attention"] for row in report["rows"]] == [*ATTENTIONS, *RIVALS]
    assert all(set(row) == COLUMNS for row in report["rows"])
    rows = {row["attention"]: row for row in report["rows"]}
    assert rows["sinkhorn"]["agreement"] == 1 and rows["sinkhorn"]["output_error"] == 0
    assert rows["sinkhorn"]["speedup"] == 1 and report["seconds"] > 0
    errors = [rows[name]["output_error"] for name in ATTENTIONS[2:7]]
    assert errors == sorted(errors, reverse=True)  # more iterations, nearer to the teacher
    assert (out / "report.md").read_text() in done.stdout
    page = (out / "index.html").read_text()
    assert html.escape(report["rows"][0]["attention"]) in page and "What to do next" in page
    assert page.count("data:image/svg+xml;base64,") == len(list(out.glob("*.svg"))) and 'src="http' not in page
    assert page.index("The attention alone") > page.rindex("data:image")  # pictures before long tables
    for name in ("reproduce.png", "reproduce.svg", "softmax.npz", "sinkhorn.npz", "asap.npz", "fidelity.npz"):
        assert (out / name).stat().st_size > 1000
    assert str(out) not in (out / "report.json").read_text()  # no path of this machine in the record


def test_the_compiled_model_runs_on_its_own_and_gives_the_reported_accuracy(short_run):
    from asap_ref.model.training import accuracy

    out, _ = short_run
    digits = few_digits.load()
    report = json.loads((out / "report.json").read_text())
    for name in ("softmax", "sinkhorn", "asap"):
        expected = next(row["accuracy"] for row in report["rows"] if row["attention"] == name)
        assert accuracy(Transformer.load(out / f"{name}.npz"), digits.test_inputs, digits.test_labels) == expected


def test_heads_are_compiled_left_to_sinkhorn_and_reported(short_run, tmp_path):
    out, _ = short_run
    model, compiled = str(out / "sinkhorn.npz"), str(tmp_path / "compiled.npz")
    done = asap_ref("compile", model, compiled, *DIGITS, "--slices", "4", "--fallback", "0.05")
    assert done.returncode == 0, done.stderr
    done = asap_ref("fidelity", compiled, *DIGITS, "--out", str(tmp_path / "told"), "--worse-than", "1e-9")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "told.md").read_text()
    assert table in done.stdout and len(table.splitlines()) == 2 + 8  # two layers of four heads
    assert "off by more than 1e-09, worst first: layer" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "compiled.npz",
        *(f"told.{s}" for s in ("md", "svg", "png", "npz")),
    }


@pytest.mark.slow
def test_a_model_can_be_trained_with_any_other_mechanism(tmp_path):
    shared = ["--epochs", "12", "--n-iter", "2", "--slices", "4", "--out", str(tmp_path)]
    done = asap_ref("reproduce", *DIGITS, "--attention", "sliced", "initial", *shared)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    trained = {row["attention"]: row for row in report["rows"] if row["output_error"] is None}
    assert list(trained) == ["softmax", "sliced", "initial"]
    assert all(row["accuracy"] > 0.15 for row in trained.values())  # it learns: chance is 0.1
    assert Transformer.load(tmp_path / "sliced.npz").attentions[0].name == "sliced"


def test_progress_is_plain_lines_when_piped(short_run):
    _, done = short_run
    assert "train sinkhorn: epoch 2/2, loss" in done.stderr
    assert "\r" not in done.stderr and "\x1b" not in done.stderr


def test_compile_command_replaces_the_attention_of_a_saved_model(short_run, tmp_path):
    out, _ = short_run
    done = asap_ref("compile", str(out / "sinkhorn.npz"), str(tmp_path / "compiled.npz"), *DIGITS, "--slices", "8")
    assert done.returncode == 0, done.stderr
    assert "layer 1: R²" in done.stdout
    images = np.zeros((1, 8, 8), np.float32)
    np.testing.assert_array_equal(
        Transformer.load(tmp_path / "compiled.npz")(images), Transformer.load(out / "asap.npz")(images)
    )


def test_advice_is_a_table_a_sentence_and_a_model_that_keeps_to_it(short_run, tmp_path):
    out, _ = short_run
    model, chosen = str(out / "sinkhorn.npz"), str(tmp_path / "chosen.npz")
    done = asap_ref("advise", model, *DIGITS, "--error", "0.03", "--out", chosen)
    assert done.returncode == 0, done.stderr
    assert (
        "| over-relaxed-gaussian-1 |" in done.stdout
        and "Within 0.03 of the teacher the cheapest is" in done.stdout
    )
    images = some_of(few_digits.load().test_inputs, 17)
    assert f"{len(images)} sequences of 17 tokens on numpy" in done.stdout
    teacher, found = Transformer.load(model), Transformer.load(chosen)
    errors = compare_attentions(teacher, found.attentions, images)
    assert max(error for layer in errors for error in layer["output_error"]) <= 0.03 + 1e-6
    refused = asap_ref("advise", model, *DIGITS, "--length", "9")
    assert refused.returncode == 2 and "--length: the model reads images, of 17 tokens each" in refused.stderr


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_resumes_to_the_same_models(short_run, tmp_path):
    out, _ = short_run
    arguments = ["reproduce", *DIGITS, "--epochs", "2", "--n-iter", "6", "--slices", "8", "--out", str(tmp_path)]
    # what a shell starts with & is deaf to interrupts, and so is all that it starts in its turn
    listen = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", listen, sys.executable, few_digits.__file__, *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "softmax.checkpoint.npz").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert "go on with --resume" in stderr and "Traceback" not in stderr
    again = asap_ref(*arguments)  # nothing is lost by forgetting it
    assert again.returncode == 2 and "holds softmax.checkpoint.npz already; --resume goes on" in again.stderr
    done = asap_ref(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    with np.load(out / "sinkhorn.npz") as straight, np.load(tmp_path / "sinkhorn.npz") as resumed:
        assert all(np.array_equal(straight[key], resumed[key]) for key in straight.files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "--epochs", "0"], "expected an integer of at least 1, got '0'"),
        (["reproduce", "--epochs", "many"], "expected an integer of at least 1, got 'many'"),
        (["reproduce", "--slices", "1.5"], "expected an integer of at least 1, got '1.5'"),
        (["advise", "absent.npz"], "no file absent.npz"),
        (["advise", "absent.npz", "--length", "0"], "expected an integer of at least 1, got '0'"),
        (["advise", "absent.npz", "--out", f"{os.devnull}/x"], f"--out: {os.devnull} is a file"),
        (["compile", "a", "b", "--slices", "few"], "expected an integer of at least 1, got 'few'"),
        (["reproduce", "--seed", "-1"], "expected an integer of at least 0, got '-1'"),
        (["reproduce", "--backend", "tensorflow"], "invalid choice"),
        (["reproduce", "--dataset", "imagenet"], "invalid choice"),
        (["reproduce", "--attention", "sparse"], "invalid choice"),
        (["reproduce", "--out"], "expected one argument"),
        (["reproduce", "--out", os.devnull], f"--out: {os.devnull} is a file, expected a folder"),
        (
            ["reproduce", "--out", f"{os.devnull}/deeper"],
            f"--out: {os.devnull} is a file, so that nothing can be below",
        ),
        (["bench", "--out", "."], "--out: . is a folder, expected the name of a file"),
        (["fidelity", "absent.npz", "--out", f"{os.devnull}/x"], f"--out: {os.devnull} is a file"),
        (["compile", "absent.npz", os.devnull], "is there already; give another name, or --force"),
        (["compile", "absent.npz", os.devnull, "--force"], "no file absent.npz"),
        (["reproduce", "--dataset", "digit"], "invalid choice: 'digit'; did you mean 'digits'?"),
        (["reproduce", "--epohcs", "3"], "unrecognized arguments: --epohcs 3; did you mean '--epochs'?"),
        (["reproduc"], "did you mean 'reproduce'?"),
        (["oracle", "chek", "x"], "did you mean 'check'?"),
        (["oracle", "show", "sinkhorn/epsilo"], "did you mean 'sinkhorn/epsilon'?"),
        (["figures", "ablatoin"], "; did you mean 'ablation'?"),
        (["compile", "absent.npz"], "required: compiled"),
        (["compile", "absent.npz", "x.npz"], "no file absent.npz"),
        (["compile", os.devnull, "x.npz"], f"{os.devnull} is damaged or was not written by asap_ref"),
        (["compile", "/", "x.npz"], "Is a directory"),
        (["train"], "required: --data"),
        (["train", "--data", "absent.npz"], "no file absent.npz"),
        (["predict", "absent.npz", "--data", "absent.csv"], "no file absent.npz"),
        (["compile", "a", "b", "--dataset", "r8", "--data", "own.npz"], "not allowed with argument"),
        (["figures", "nonsense"], "no figure nonsense"),
        (["nonsense"], "invalid choice"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["reproduce", "--quiet", "--epochs", "0"], "expected an integer of at least 1"),
    ],
)
def test_mistakes_exit_with_2_and_one_clear_line(arguments, message, tmp_path):
    done = asap_ref(*arguments, cwd=tmp_path, env={"COLUMNS": "40"})
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1
    assert not done.stdout and not list(tmp_path.iterdir())
    note(MISTAKES, REFUSED)


def test_a_module_that_is_not_installed_is_named_with_its_remedy(tmp_path):
    if find_spec("cupy") is not None:
        pytest.skip("CuPy is installed, so there is nothing to miss")
    done = asap_ref("reproduce", "--backend", "cupy", cwd=tmp_path)
    assert done.returncode == 2 and "try: pip install 'asap-ref[cuda12]', or with CUDA 13: pip" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_is_told_and_kept(tmp_path):
    (tmp_path / "softmax.checkpoint.npz").write_bytes(b"half a file")
    done = asap_ref("reproduce", *DIGITS, "--epochs", "2", "--resume", "--out", str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "softmax.checkpoint.npz is damaged" in done.stderr
    assert (tmp_path / "softmax.checkpoint.npz").read_bytes() == b"half a file"


def test_a_model_with_other_attention_is_not_compiled(short_run, tmp_path):
    out, _ = short_run
    done = asap_ref("compile", str(out / "softmax.npz"), str(tmp_path / "x.npz"), *DIGITS)
    assert done.returncode == 2 and "layer 0 has softmax attention, expected sinkhorn" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["reproduce", "--help"], ["info"]])
def test_a_reader_that_goes_away_is_no_failure_of_ours(arguments):
    """As in ``asap-ref info | head -0``: no traceback, no complaint at exit, the code a shell expects.

    argparse itself passes over a failing write of its help, and the code is then 0.
    """
    reading, writing = os.pipe()
    os.close(reading)
    done = installed(*arguments, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode in ((0, 141) if "--help" in arguments else (141,))
    assert done.stderr == ""


def test_a_terminal_without_our_letters_gets_others(short_run, tmp_path):
    out, _ = short_run
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    arguments = ["compile", str(out / "sinkhorn.npz"), str(tmp_path / "x.npz"), *DIGITS, "--slices", "2"]
    done = installed(*arguments, env=ascii_only)
    assert done.returncode == 0 and "R? of the query dual" in done.stdout


def test_resuming_with_other_options_is_refused(short_run):
    out, _ = short_run
    done = asap_ref("reproduce", *DIGITS, "--epochs", "3", "--resume", "--out", str(out))
    assert done.returncode == 2
    assert "made with other settings" in done.stderr


def test_data_of_ones_own_are_trained_compiled_judged_and_predicted(tmp_path):
    rng = np.random.default_rng(0)
    names = np.asarray(["left", "right"])[rng.integers(2, size=120)]
    X = rng.standard_normal((120, 6, 2)) + 2 * (names == "left")[:, None, None]
    np.savez(tmp_path / "own.npz", X=X, y=names, lengths=rng.integers(2, 7, size=120))
    lines = "".join(f"{a} {b},{b}\n" for a, b in zip(rng.choice(["the", "a"], 120), names, strict=True))
    (tmp_path / "own.csv").write_text(f"text,label\n{lines}")
    for data in ("own.npz", "own.csv"):
        given = ("--data", data)
        small = ("--epochs", "25", "--width", "8", "--layers", "1", "--heads", "2", "--n-iter", "3")
        for step in (
            ["train", *given, *small, "--force"],
            ["compile", "model.npz", "compiled.npz", *given, "--slices", "4", "--force"],
            ["fidelity", "compiled.npz", *given],
            ["predict", "compiled.npz", *given, "--out", "predicted.csv", "--force"],
        ):
            done = asap_ref(*step, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert "108 examples trained, 12 kept" in asap_ref("train", *given, *small, "--force", cwd=tmp_path).stdout
        predicted = (tmp_path / "predicted.csv").read_text().splitlines()
        assert predicted[0] == "label,probability" and len(predicted) == 121
        right = np.mean([line.split(",")[0] == name for line, name in zip(predicted[1:], names, strict=True)])
        assert right > 0.8 and f"120 examples, {right:.1%} of their labels predicted" in done.stderr
    assert Transformer.load(tmp_path / "model.npz").classes == ("left", "right")


@pytest.mark.slow
def test_the_installed_command_does_it_on_all_digits(short_run, tmp_path):
    done = installed(
        "reproduce", *DIGITS, "--epochs", "2", "--n-iter", "6", "--slices", "8", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["attention"] for row in report["rows"]] == [*ATTENTIONS, *RIVALS]
    assert "digits, 1437 training and 360 test examples" in done.stdout and "\r" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in short_run[0].iterdir()}


@pytest.mark.slow
def test_text_goes_the_same_way_from_padded_ids_to_the_table(tmp_path):
    arguments = ["reproduce", "--dataset", "topics", "--epochs", "3", "--out", str(tmp_path)]
    done = asap_ref(*arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["attention"]: row for row in report["rows"]}
    assert list(rows) == [*ATTENTIONS, *RIVALS]
    assert rows["sinkhorn"]["accuracy"] > 0.7  # four topics: chance is 0.25
    assert rows["asap"]["output_error"] < rows["sinkhorn-1"]["output_error"]
    assert "topics, 1000 training and 250 test examples" in done.stdout
    model = ["compile", str(tmp_path / "sinkhorn.npz"), str(tmp_path / "again.npz"), "--dataset", "topics"]
    assert asap_ref(*model).returncode == 0
    ids = np.asarray([[5, 9, 0], [7, 0, 0]], np.int32)
    np.testing.assert_array_equal(
        Transformer.load(tmp_path / "again.npz")(ids), Transformer.load(tmp_path / "asap.npz")(ids)
    )


def test_the_command_line_offers_every_experiment():
    from asap_ref import cli
    from asap_ref.lab import experiments

    assert set(cli.DATASETS) == set(experiments.EXPERIMENTS)
    from asap_ref.model.mechanism import MECHANISMS, settings_of

    assert set(cli.TRAINABLE) == {
        name for name, line in MECHANISMS.items() if inspect.Parameter.empty not in settings_of(line).values()
    }


def test_the_module_is_the_command_and_tells_its_version():
    import asap_ref

    run = [sys.executable, "-m", "asap_ref", "--version"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=HANGS, check=True)
    assert done.stdout == f"asap-ref {asap_ref.__version__}\n" and not done.stderr


def test_quiet_prints_nothing_but_errors(tmp_path):
    fast = ["reproduce", *DIGITS, "--epochs", "1", "--n-iter", "2", "--slices", "2", "--out", str(tmp_path)]
    assert asap_ref(*fast[:1], "--quiet", *fast[1:]) == (0, "", "")
    report = (tmp_path / "report.json").read_bytes()
    for refused in (["--quiet", *fast], fast):  # before the command as well, and the same rule without it
        done = asap_ref(*refused)
        assert done.returncode == 2 and not done.stdout
        assert "--force begins anew" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "report.json").read_bytes() == report


def test_nothing_is_overwritten_without_force(short_run, tmp_path):
    model = short_run[0] / "sinkhorn.npz"
    written = tmp_path / "compiled.npz"
    assert asap_ref("compile", model, written, *DIGITS, "--slices", "2", "-q") == (0, "", "")
    told = asap_ref("fidelity", written, *DIGITS, "--out", tmp_path / "told", "-q")
    assert told == (0, "", "")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    commands = [
        ["compile", model, written, *DIGITS, "--slices", "2"],
        ["fidelity", written, *DIGITS, "--out", tmp_path / "told"],
        ["bench", "--out", tmp_path / "told.md"],
    ]
    for command in commands:
        done = asap_ref(*command)
        assert done.returncode == 2 and "already; give another name, or --force to write over it" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for command in commands[:2]:
        assert asap_ref(*command, "--force").returncode == 0


def test_a_file_of_ours_is_named_for_what_it_is(short_run, tmp_path):
    out, _ = short_run
    done = asap_ref("compile", out / "report.json", tmp_path / "x.npz")
    assert done.returncode == 2 and "report.json is of kind 'report', expected 'transformer'" in done.stderr
    done = asap_ref("fidelity", out / "fidelity.npz")
    assert done.returncode == 2 and "fidelity.npz is of kind 'fidelity', expected 'transformer'" in done.stderr


def test_info_names_versions_and_array_modules():
    done = asap_ref("info")
    assert done.returncode == 0
    assert "asap-ref" in done.stdout and f"numpy: {np.__version__}" in done.stdout
    assert "cupy" in done.stdout


COMMANDS = [[], *([name] for name in cli.commands())]


@pytest.mark.parametrize("width", ["40", "200"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_the_terminal_and_ends_with_an_example_to_copy(command, width):
    done = asap_ref(*command, "--help", env={"COLUMNS": width})
    assert done.returncode == 0 and not done.stderr
    text, _, examples = done.stdout.partition("\nexample")
    assert text.startswith("usage: asap-ref")
    lines = [line.strip() for line in examples.splitlines()[1:]]
    assert lines and all(line.startswith(" ".join(["asap-ref", *command])) for line in lines)
    for line in lines:  # each is a call that the parser takes
        cli.build_parser().parse_args(line.split()[1:])
