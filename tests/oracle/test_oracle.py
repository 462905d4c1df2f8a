"""The oracle as its users meet it: cases, check, reports, pytest, the shell."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from asap_ref import cli, oracle
from asap_ref.oracle import reference

EPSILON = oracle.case("sinkhorn/epsilon")


@oracle.parametrize()
def test_this_package_passes_every_case(case):
    report = oracle.run_case(reference, case)
    assert report.passed, report


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("operator", oracle.operators())
def test_this_package_passes_in_lower_precision(operator, dtype):
    if any(dtype in rule["tolerance"] for c in oracle.cases(operator) for rule in c.rules["outputs"].values()):
        report = oracle.check_module(reference, operator=operator, dtype=dtype)
        assert report.passed, report


def test_cases_are_found_by_operator_and_flag():
    assert {c.operator for c in oracle.cases("sinkhorn")} == {"sinkhorn"}
    both = oracle.cases("sinkhorn", flags=("padding", "init"))
    assert {c.id for c in both} >= {"sinkhorn/padding", "sinkhorn/init"}
    assert all({"padding", "init"} & set(c.flags) for c in both)
    assert len(oracle.cases()) == sum(len(oracle.cases(name)) for name in oracle.operators())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oracle.cases("sinkhron"), "no operator 'sinkhron'; there are: attention_scores"),
        (lambda: oracle.cases(flags="paddding"), "no flag paddding; there are: plain"),
        (lambda: oracle.cases(version=99), "no vectors of version 99; there are: 1, 2"),
        (
            lambda: oracle.case("sinkhorn/nonsense"),
            "no case 'sinkhorn/nonsense'; there are: sinkhorn/softmax_start",
        ),
        (lambda: oracle.check(EPSILON, {"dual": np.zeros(6)}), "has no outputs named dual; it has query_dual"),
        (lambda: oracle.check(EPSILON, {}), "no outputs for sinkhorn/epsilon"),
        (lambda: oracle.check(EPSILON, tuple(np.zeros((3, 6)))), "3 outputs for sinkhorn/epsilon, which has 2"),
        (lambda: oracle.check(EPSILON, EPSILON.outputs, dtype="int8"), "dtype must be one of float64, float32"),
        (lambda: oracle.check_module(json), "json offers none of attention_scores"),
    ],
)
def test_mistakes_in_the_call_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_things_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="expected arrays of real numbers"):
        oracle.check(EPSILON, {"query_dual": np.asarray(["a"] * 6)}, dtype="float64")


def test_duals_are_compared_up_to_their_constant_and_no_further():
    f, g = EPSILON.outputs.values()
    assert oracle.check(EPSILON, (f + 5, g - 5)).passed
    assert not oracle.check(EPSILON, (f + 5, g + 5)).passed
    assert not oracle.check(EPSILON, (f, g - 5)).passed
    assert not oracle.check(
        oracle.case("transport_plan/plain"), oracle.case("transport_plan/plain").outputs["plan"] + 1e-6
    ).passed


def test_padding_must_be_exactly_zero():
    case = oracle.case("sinkhorn/padding")
    f, g = case.outputs.values()
    padded = case.must_be_zero["query_dual"]
    report = oracle.check(case, (np.where(padded, 1e-30, f), g))
    assert not report.passed
    assert "padding must be exactly zero here" in str(report)


@pytest.mark.parametrize(
    ("id_", "wrong", "words"),
    [
        ("sinkhorn/epsilon", lambda f, g: (f / 0.25, g / 0.25), "it is the right array times 4 = 1/epsilon"),
        ("sinkhorn/unequal_lengths", lambda f, g: (f * np.nan, g), "entries are NaN"),
        ("sinkhorn/unequal_lengths", lambda f, g: (0 * f, g), "it is the same for all tokens"),
        ("transport_plan/plain", lambda p: p.T, "it is the transpose of the right array"),
        ("transport_plan/plain", lambda p: p[:, :4], r"has shape (5, 4), expected (5, 5)"),
        ("transport_plan/epsilon", lambda p: p.T, "the last two axes are swapped"),
        ("entropic_c_transform/unequal_lengths", lambda g: g - np.log(7 / 3), "constant -0.847298 = epsilon log(m/n)"),
        ("sliced_potentials/plain", lambda phi, psi: (phi - phi[:, :1], psi), "a constant for each row: is it centred"),
        ("softmax_attention/plain", lambda out: out.astype(np.float32), "an error of this size is that of float32"),
        ("sinkhorn/epsilon", lambda f, g: (f + np.eye(6)[5], g), "it is wrong only at"),
    ],
)  # fmt: skip
def test_reports_say_what_a_wrong_array_looks_like(id_, wrong, words):
    case = oracle.case(id_)
    report = oracle.check(case, wrong(*case.outputs.values()), dtype="float64")
    assert not report.passed
    assert words in str(report)
    assert case.flags[0] in str(report)


def test_a_report_names_the_iteration_that_it_met():
    case = oracle.case("sinkhorn/three_iterations")
    one = {name: case.intermediates[f"{name}_by_iteration"][2] for name in case.outputs}
    assert "the value after 2 of 3 iterations" in str(oracle.check(case, one))


def test_intermediates_say_where_the_path_was_left():
    case = oracle.case("asap_attention/plain")
    steps = case.intermediates | {"predicted_dual": case.intermediates["predicted_dual"] + 1}
    report = oracle.check(case, case.outputs, intermediates=steps)
    assert report.wrong == ("step predicted_dual",)


def test_wrong_gradients_fail():
    case = oracle.case("sinkhorn/one_iteration")
    assert oracle.check(case, case.outputs, gradients=case.gradients).passed
    report = oracle.check(case, case.outputs, gradients={"scores": -case.gradients["scores"]})
    assert report.wrong == ("gradient of scores",)
    assert "it is the right array times -1 = -1 (a sign)" in str(report)


def test_dtype_is_read_off_the_outputs():
    case = oracle.case("softmax_attention/plain")
    assert oracle.check(case, case.outputs["out"].astype(np.float32)).dtype == "float32"
    assert oracle.check(case, case.outputs["out"].astype(np.float32)).passed
    assert not oracle.check(case, case.outputs["out"].astype(np.float32), dtype="float64").passed


def test_arrays_of_torch_and_jax_are_taken():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    case = oracle.case("softmax_attention/plain")
    out = case.outputs["out"]
    assert oracle.check(case, torch.tensor(out, requires_grad=True)).passed
    assert oracle.check(case, jnp.asarray(out, dtype=jnp.float32)).dtype == "float32"
    half = oracle.check(case, torch.tensor(out, dtype=torch.bfloat16))
    assert half.passed and half.dtype == "bfloat16"


def test_arrays_that_speak_only_dlpack_are_taken():
    class Foreign:
        def __init__(self, x):
            self.x, self.dtype = x, x.dtype

        def __dlpack__(self, **options):
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    case = oracle.case("softmax_attention/plain")
    assert oracle.check(case, Foreign(case.outputs["out"])).passed


def test_a_case_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EPSILON.id = "other"
    EPSILON.outputs["query_dual"][:] = 0
    assert np.any(oracle.case("sinkhorn/epsilon").outputs["query_dual"])


def test_a_module_report_says_where_to_begin():
    def sinkhorn(scores, **settings):
        return reference.sinkhorn(scores, **(settings | {"epsilon": 1.0}))

    def transport_plan(*args, **kwargs):
        raise RuntimeError("not written yet")

    module = SimpleNamespace(__name__="mine", sinkhorn=sinkhorn, transport_plan=transport_plan)
    report = oracle.check_module(module)
    text = str(report)
    assert not report.passed
    assert report.first_operator() == "transport_plan"  # below sinkhorn
    assert "raised RuntimeError: not written yet (test_oracle.py, line" in text
    assert "not there, not checked: attention_scores" in text
    assert "not all gradients given: sinkhorn" in text
    failed = {r.case.id for r in report.failed if r.case.operator == "sinkhorn"}
    assert failed >= {c.id for c in oracle.cases("sinkhorn", version=1) if c.arguments["epsilon"] != 1} - {
        "sinkhorn/single_token"
    }


# ------------------------------------------------------------------------------------------------------- the shell


def shell(*arguments, capsys):
    code = cli.main(["oracle", *arguments])
    return code, *capsys.readouterr()


def test_shell_lists_and_shows(capsys):
    code, out, _ = shell("list", "--flag", "refine", capsys=capsys)
    assert (
        code == 0
        and "asap_attention/refine" in out
        and out.endswith(f"\n{len(oracle.cases(flags='refine'))} cases\n")
    )
    code, out, _ = shell("show", "sinkhorn/epsilon", capsys=capsys)
    assert code == 0 and "epsilon = 0.25" in out and "tolerance float64 1e-10" in out and "epsilon_scaling:" in out
    code, _, err = shell("show", "sinkhorn/none", capsys=capsys)
    assert code == 2 and "there are: sinkhorn/softmax_start" in err


def test_shell_checks_a_file_and_exits_with_1_on_a_mistake(tmp_path, capsys):
    right = tmp_path / "right.py"
    right.write_text("from asap_ref import attention_scores\n")
    assert shell("check", str(right), "--dtype", "float32", capsys=capsys)[0] == 0
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def attention_scores(q, k):\n    return q @ k.swapaxes(-1, -2)\n")
    code, out, _ = shell("check", str(wrong), capsys=capsys)
    assert code == 1 and "= sqrt(d)" in out and "begin with attention_scores" in out
    code, _, err = shell("check", str(tmp_path / "absent.py"), capsys=capsys)
    assert code == 2 and "no file" in err
    code, _, err = shell("check", "no_such_module", capsys=capsys)
    assert code == 2 and "no_such_module" in err


def test_shell_finds_modules_of_the_folder_one_stands_in(tmp_path, monkeypatch, capsys):
    (tmp_path / "module_of_this_folder.py").write_text("from asap_ref import marginal_error\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert shell("check", "module_of_this_folder", "--operator", "marginal_error", capsys=capsys)[0] == 0


def test_shell_exports_everything_another_language_needs(tmp_path, capsys):
    folder = tmp_path / "vectors"
    assert shell("export", str(folder), capsys=capsys)[0] == 0
    for version in ("v1", "v2"):
        listed = json.loads((folder / version / "manifest.json").read_text(encoding="utf-8"))
        assert all((folder / version / entry["file"]).exists() for entry in listed["cases"])
    assert (folder / "README.md").exists()
    code, _, err = shell("export", str(folder), capsys=capsys)
    assert code == 2 and "more already; give another name, or --force" in err
