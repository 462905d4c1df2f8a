"""The harness tells the truth: what an adapter leaves out, changes or misnames is told by name."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from asap_ref import cli, oracle
from asap_ref.oracle import contract, reference


def adapter(**functions):
    return SimpleNamespace(__name__="mine", **functions)


def smallest(operator):
    return min(oracle.cases(operator), key=lambda c: sum(x.size for x in c.inputs.values()))


OUTPUTS = [(name, output) for name, known in oracle.operators().items() for output in known["outputs"]]


@pytest.mark.parametrize(("operator", "output"), OUTPUTS)
def test_an_adapter_that_omits_one_output_fails_and_the_output_is_named(operator, output):
    case = smallest(operator)
    right = case.outputs

    def without(**_):
        return {name: x for name, x in right.items() if name != output} or None

    def with_none(**_):
        found = tuple(None if name == output else x for name, x in right.items())
        return found if len(found) > 1 else found[0]

    for function in (without, with_none):
        report = oracle.run_case(adapter(**{operator: function}), case)
        assert not report.passed
        assert report.wrong == (output,) or f"expected {output}" in report.message


def test_an_adapter_that_returns_only_the_first_output_fails_every_case():
    module = adapter(sinkhorn=lambda scores, **settings: reference.sinkhorn(scores, **settings).query)
    report = oracle.check_module(module, operator="sinkhorn")
    assert len(report.failed) == len(oracle.cases("sinkhorn"))
    assert "key_dual               MISSING it was not returned" in str(report)


def test_results_of_another_dtype_fail():
    def attention_scores(q, k):
        return reference.attention_scores(q, k).astype(np.float64)

    case = oracle.case("attention_scores/plain")
    report = oracle.run_case(adapter(attention_scores=attention_scores), case, dtype="float32")
    assert report.breaches == (("wrong_dtype", "scores is float64; inputs are float32, and so must results be"),)
    assert not report.passed and all(c.status != "wrong" for c in report.comparisons)
    assert oracle.run_case(adapter(attention_scores=attention_scores), case, dtype="float64").passed


def test_gradients_of_another_dtype_fail():
    def attention_scores_vjp(q, k):
        out, vjp = reference.attention_scores_vjp(q, k)
        return out, lambda cotangent: tuple(g.astype(np.float64) for g in vjp(cotangent))

    module = adapter(attention_scores=reference.attention_scores, attention_scores_vjp=attention_scores_vjp)
    report = oracle.run_case(module, oracle.case("attention_scores/plain"), dtype="float32")
    assert {text.split(" is ")[0] for _, text in report.breaches} == {"gradient of q", "gradient of k"}


def test_results_on_another_device_fail():
    import array_api_strict as strict

    def attention_scores(q, k):
        return (q @ k.mT / q.shape[-1] ** 0.5).to_device(strict.Device("device1"))

    module = adapter(attention_scores=attention_scores, to_array=lambda x, dtype: strict.asarray(x.astype(dtype)))
    report = oracle.run_case(module, oracle.case("attention_scores/plain"))
    assert [name for name, _ in report.breaches] == ["wrong_device"]
    assert "device1" in report.breaches[0][1]


def test_inputs_that_are_written_over_fail():
    def attention_scores(q, k):
        q /= np.sqrt(q.shape[-1])
        return q @ k.swapaxes(-1, -2)

    report = oracle.run_case(adapter(attention_scores=attention_scores), oracle.case("attention_scores/plain"))
    assert report.breaches == (("changed_inputs", "q changed during the call"),)
    assert not report.passed


def test_views_as_inputs_are_tried_and_told():
    def as_memory_has_it(x):  # what a kernel does that takes a pointer and trusts it
        base = x if x.base is None else x.base
        return np.frombuffer(base.tobytes("A"), x.dtype)[: x.size].reshape(x.shape)

    def attention_scores(q, k):
        return reference.attention_scores(as_memory_has_it(q), as_memory_has_it(k))

    report = oracle.check_module(
        adapter(attention_scores=attention_scores), operator="attention_scores", version=1
    )
    assert all(r.passed for r in report.reports)
    assert [r.passed for r in report.layouts] == [False, False, True]  # the last is the same once more
    assert report.suspects()[0] == "memory_layout"
    assert "the case passes; it does not when its inputs are views" in str(report)


@pytest.mark.parametrize("layout", ["transposed", "interleaved"])
def test_views_hold_the_same_numbers(layout):
    case = oracle.case("asap_attention/padding")
    torch = pytest.importorskip("torch")
    for convert in (
        lambda x, dtype: x.astype(dtype),
        lambda x, dtype: torch.tensor(x, dtype=getattr(torch, dtype)),
    ):
        inputs = contract.Inputs(case.inputs, convert, "float64", layout)
        assert all(np.array_equal(np.asarray(x), case.inputs[name]) for name, x in inputs.arrays.items())
        assert not inputs.changed()
    strides = np.asarray(inputs.arrays["q"]).strides
    assert strides != case.inputs["q"].strides


def test_a_wrong_signature_is_said_once_with_the_right_one():
    def sinkhorn(S, iters, eps=1.0):
        raise AssertionError("not called")

    report = oracle.check_module(adapter(sinkhorn=sinkhorn), operator="sinkhorn", version=1)
    text = str(report)
    assert text.count("is called as") == 1
    assert "sinkhorn(scores, init=None, query_mask=None, key_mask=None, *, n_iter, epsilon)" in text
    assert (
        "does not take scores, init, query_mask, key_mask, n_iter, epsilon" in text and "asks for S, iters" in text
    )
    assert report.suspects()[0] == "signature"
    assert len(report.skipped) + len(report.reports) == len(oracle.cases("sinkhorn", version=1))


def test_an_argument_that_is_not_taken_fails_the_cases_that_have_it():
    def sinkhorn(scores, query_mask=None, key_masks=None, *, n_iter, epsilon):
        return reference.sinkhorn(scores, n_iter=n_iter, epsilon=epsilon)

    report = oracle.check_module(adapter(sinkhorn=sinkhorn), operator="sinkhorn", version=1)
    assert "does not take init, key_mask (key_mask is your key_masks?)" in str(report)
    assert {r.case.id for r in report.reports if r.passed} >= {"sinkhorn/epsilon"}


def test_a_misspelt_function_is_told():
    module = adapter(softmax_atention=reference.softmax_attention, attention_scores=reference.attention_scores)
    text = str(oracle.check_module(module, version=1))
    assert "is your softmax_atention meant to be softmax_attention?" in text
    with pytest.raises(ValueError, match="is its softmax_atention meant to be softmax_attention"):
        oracle.check_module(adapter(softmax_atention=None.__eq__))


def test_skipped_cases_are_named_with_the_reason():
    report = oracle.check_module(reference, dtype="float16", operator="kantorovich_potentials_1d")
    assert (
        "kantorovich_potentials_1d/float32_inside",
        "float16 has too few digits for its data",
    ) in report.skipped
    assert (
        "skipped, 1, as float16 has too few digits for its data: kantorovich_potentials_1d/float32_inside"
        in str(report)
    )


def test_gradients_can_be_required():
    module = adapter(sinkhorn=reference.sinkhorn)
    case = oracle.case("sinkhorn/epsilon")
    assert oracle.run_case(module, case).passed
    report = oracle.run_case(module, case, require_gradients=True)
    assert not report.passed and report.wrong == ("gradient of scores",)


def test_a_right_dual_is_not_called_wrong_for_the_constant_of_a_wrong_one():
    case = oracle.case("sinkhorn/three_iterations")
    f, g = case.outputs.values()
    report = oracle.check(case, (f + np.arange(6), g))
    assert report.wrong == ("query_dual",)
    report = oracle.check(case, (f, g + 1))
    assert report.wrong == ("query_dual", "key_dual") or report.wrong == ("key_dual",)
    assert "the constants do not cancel" in str(report)


def test_the_package_itself_is_recognised():
    report = oracle.check_module("asap_ref", operator="asap_attention")
    assert report.passed and "checked as asap_ref.oracle.reference" in str(report)


def test_shell_stops_at_the_first_failure_and_speaks_json(tmp_path, capsys):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from asap_ref import attention_scores\n"
        "def softmax_attention(q, k, v, query_mask=None, key_mask=None):\n"
        "    return v.mean(-2, keepdims=True) + 0 * q[..., :1]\n"
    )
    command = ["oracle", "check", str(wrong), "--version", "1"]
    assert cli.main([*command, "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert not found["passed"] and found["begin_with"] == "softmax_attention" and found["cases"] == 8
    assert found["failed"][0]["comparisons"][0]["status"] == "wrong"
    assert "cases, 0 failed: attention_scores" in err
    assert cli.main([*command, "-x"]) == 1
    assert "2 of 3 cases passed, stopped at the first failure" in capsys.readouterr().out
    right = tmp_path / "right.py"
    right.write_text("from asap_ref import attention_scores\n")
    assert cli.main(["oracle", "check", str(right), "--version", "1", "--require-gradients"]) == 1
    assert cli.main(["oracle", "check", str(right), "--version", "1"]) == 0


def test_a_result_that_is_another_the_second_time_fails():
    calls = []

    def attention_scores(q, k):
        """The first call for a problem is right, and later ones add to what lies there."""
        out, key = reference.attention_scores(q, k), q.tobytes()
        calls.append(key)
        return out * calls.count(key)

    report = oracle.check_module(
        adapter(attention_scores=attention_scores), operator="attention_scores", version=1
    )
    assert all(r.passed for r in report.reports)
    again = report.layouts[-1]
    assert not again.passed
    assert again.breaches[0] == (
        "not_repeatable",
        "the case passes; it does not when it is asked for the same again",
    )
    assert "not_repeatable" in report.suspects()[:2] + report.suspects()[2:]


def test_a_dtype_that_the_arrays_do_not_have_is_told(monkeypatch):
    def without_bfloat16(x, dtype):  # NumPy, unless JAX has been imported
        raise TypeError(f"data type {dtype!r} not understood")

    module = adapter(attention_scores=reference.attention_scores)
    with monkeypatch.context() as patch:
        patch.setattr("asap_ref.oracle.adapter._numpy_array", without_bfloat16)
        with pytest.raises(ValueError, match="NumPy has no bfloat16: give the module a to_array"):
            oracle.check_module(module, dtype="bfloat16")
    module.to_array = without_bfloat16
    with pytest.raises(
        ValueError, match=r"mine: to_array\(x, 'bfloat16'\) raised TypeError: data type 'bfloat16'"
    ):
        oracle.check_module(module, dtype="bfloat16")


def wrong_family(weights_of):
    """An amortizer that gets the features of one family wrong."""

    def amortized_query_dual(q, k, directions, weights, basis=None, *, cumulants, **masks):
        counts = (directions.shape[-1], 3 * cumulants)
        part = {"slices": slice(0, counts[0]), "cumulants": slice(counts[0], sum(counts)),
                "quadratic": slice(sum(counts), None)}[weights_of]  # fmt: skip
        weights = weights.copy()
        weights[:, part] *= 1.5
        return reference.amortized_query_dual(q, k, directions, weights, basis=basis, cumulants=cumulants, **masks)

    return adapter(amortized_query_dual=amortized_query_dual)


@pytest.mark.parametrize(
    ("family", "flag"), [("slices", "slice_scale"), ("cumulants", "cumulants"), ("quadratic", "quadratic")]
)
def test_the_family_of_features_that_is_wrong_is_named(family, flag):
    report = oracle.check_module(wrong_family(family), version=1)
    text = str(report)
    assert (
        f"with the weights of {family} alone it fails, with all weights zero it passes: look at {family}" in text
    )
    assert "you gave none of the operators below it: sliced_potentials would localise this" in text
    fuzzed = oracle.fuzz(wrong_family(family), rounds=6, seed=2)
    ((least, _),) = fuzzed.smallest
    assert "sliced_potentials, cumulant_features, quadratic_features would localise this" in str(fuzzed)
    assert least.case.recipe.only == family and f"weights of the {family} alone" in str(fuzzed)
    assert flag in fuzzed.suspects()[:2]


def test_a_prediction_that_is_right_is_not_suspected():
    def asap_attention(q, k, v, directions, weights, basis=None, **settings):
        return 2 * reference.asap_attention(q, k, v, directions, weights, basis, **settings)

    report = oracle.check_module(adapter(asap_attention=asap_attention), version=1)
    assert "with all weights of features zero it fails as well" in str(report)
