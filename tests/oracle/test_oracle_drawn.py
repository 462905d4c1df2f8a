"""Cases drawn from seeds: they are right, as the second source says; shrinking finds where a failure begins."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from asap_ref import cli, oracle
from asap_ref.oracle import reference, ties
from asap_ref.oracle.drawn import DrawnCase
from asap_ref.oracle.fuzzing import edge
from asap_ref.oracle.padding import UNMASKED
from asap_ref.oracle.recipe import AXES, MASKS, OPTIONAL, SIDES, Recipe

MAKING = Path(__file__).parent / "making"


@pytest.fixture(scope="module")
def second_source():
    pytest.importorskip("torch")
    sys.path.insert(0, str(MAKING))
    try:
        import second_source

        yield second_source
    finally:
        sys.path.remove(str(MAKING))


@pytest.mark.parametrize("operator", AXES)
def test_drawn_cases_are_confirmed_by_the_second_source(second_source, operator):
    for number, (mask, side) in enumerate(
        [("none", "both"), ("left", "both"), ("heads", "key"), ("empty", "query")]
    ):
        case = oracle.random_case(
            operator,
            n=7,
            m=9,
            d=3,
            p=2,
            batch=2,
            heads=2,
            mask="none" if operator == "attention_scores" else mask,
            side=side,
            padding="100" if operator == "marginal_error" else "nan",
            given=OPTIONAL.get(operator, ()) if number % 2 else (),
            seed=number,
        )
        outputs, gradients = second_source.in_torch(
            operator, case.inputs, case.arguments, list(case.gradients), list(case.cotangents.values())
        )
        report = oracle.check(case, tuple(outputs), gradients=gradients, dtype="float64")
        assert report.passed, report


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("operator", AXES)
def test_this_package_passes_what_fuzzing_draws(operator, dtype):
    for number in range(16):
        case = DrawnCase.of(edge(operator, number, seed=5))
        report = oracle.run_case(reference, case, dtype=dtype)
        assert report.passed or not any(
            report.case.rules["outputs"][x]["tolerance"] for x in report.case.outputs
        ), report


def test_numbers_have_the_digits_of_the_dtype_and_no_more():
    case = oracle.random_case("attend", seed=1)
    bits = {"float32": 24, "float16": 11, "bfloat16": 8}
    for dtype, digits in bits.items():
        q = case.at(dtype).inputs["q"]
        mantissa, _ = np.frexp(q)
        scaled = mantissa * 2.0**digits
        assert np.array_equal(scaled, np.round(scaled))
        assert np.any(scaled % 2 == 1)
    assert case.at("float32").arguments == case.arguments
    assert np.array_equal(case.inputs["q"], oracle.random_case("attend", seed=1).inputs["q"])
    assert not np.array_equal(case.inputs["q"], oracle.random_case("attend", seed=2).inputs["q"])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("side", SIDES)
def test_masks_are_what_they_are_called(mask, side):
    case = oracle.random_case("lse", n=70, m=40, batch=3, heads=2, mask=mask, side=side)
    masks = {name: x for name, x in case.inputs.items() if name.endswith("mask")}
    if mask == "none":
        assert not masks
        return
    wanted = {"both": {"query_mask", "key_mask"}, "query": {"query_mask"}, "key": {"key_mask"}}[side]
    assert set(masks) == wanted
    for valid in masks.values():
        counts = valid.sum(-1)
        steps = np.diff(valid.astype(int), axis=-1)
        if mask == "full":
            assert valid.all()
        elif mask == "all":
            assert not valid.any()
        elif mask == "one":
            assert (counts == 1).all()
        elif mask == "heads":
            assert valid.shape[1] == 2 and np.any(valid[:, 0] != valid[:, 1])
        elif mask == "prefix":
            assert (steps <= 0).all() and len(set(counts.ravel())) == 3
        elif mask == "left":
            assert (steps >= 0).all() and (valid.shape[-1] < 60 or (valid.argmax(-1) > 32).any())
        else:
            assert np.any(steps > 0) and np.any(steps < 0)
            assert bool(counts.min() == 0) is (mask == "empty")


def broken_after(limit):
    """An attention that forgets keys beyond a limit."""

    def attend(q, k, v, key_dual, query_mask=None, key_mask=None, *, epsilon):
        seen = np.arange(k.shape[-2]) < limit
        key_mask = seen if key_mask is None else key_mask & seen
        return reference.attend(q, k, v, key_dual, query_mask=query_mask, key_mask=key_mask, epsilon=epsilon)

    return SimpleNamespace(__name__="mine", attend=attend)


def test_shrinking_finds_where_a_failure_begins():
    module = broken_after(32)
    case = oracle.random_case("attend", n=70, m=101, mask="left", layout="interleaved", arguments={"epsilon": 0.5})
    assert not oracle.run_case(module, case).passed
    least = oracle.shrink(module, case, seconds=60)
    r = least.recipe
    assert (r.n, r.m, r.d, r.p, r.batch, r.heads) == (1, 33, 1, 1, 0, 0)
    assert (r.mask, r.layout, r.arguments) == ("none", "contiguous", {})
    assert not oracle.run_case(module, least).passed


def test_fuzzing_finds_it_and_says_how_to_draw_it_again(capsys):
    report = oracle.fuzz(broken_after(32), rounds=1)
    assert not report.passed and report.first_operator() == "attend"
    text = str(report)
    assert "--m 33" in text and "asap-ref oracle random attend MODULE" in text
    assert "1 operators fail" in text
    command = next(line for line in text.splitlines() if "again:" in line).partition("asap-ref ")[2]
    assert cli.main(command.replace("MODULE", "asap_ref").split()) == 0  # where it passes
    assert "passed" in capsys.readouterr().out


def test_where_the_result_flips_is_said_first_and_sizes_that_do_not_matter_are_not_blamed():
    ((report, _),) = oracle.fuzz(broken_after(32), rounds=1).smallest
    assert report.case.note.startswith("fails from 33 keys on, not at 32; ")
    assert report.case.flags[0] == "tile_edges"
    assert not {"unequal_lengths", "head_size"} & set(report.case.flags)
    fuzzed = oracle.fuzz(broken_after(32), rounds=1)
    assert fuzzed.suspects()[0] == "tile_edges"
    assert not {"unequal_lengths", "head_size", "half_gradients"} & set(fuzzed.suspects())


def test_a_failure_at_partial_tiles_alone_is_told_with_the_sizes_that_pass():
    def attend(q, k, v, key_dual, query_mask=None, key_mask=None, *, epsilon):
        whole = max(k.shape[-2] // 16 * 16, 16)
        return broken_after(whole).attend(q, k, v, key_dual, query_mask, key_mask, epsilon=epsilon)

    module = SimpleNamespace(__name__="mine", attend=attend)
    least = oracle.shrink(module, oracle.random_case("attend", n=5, m=70), seconds=60)
    assert least.note.startswith("fails at 17 keys, not at 16, 32, 64; ")


def test_a_width_is_named_where_it_takes_one():
    def attention_scores(q, k):
        return reference.attention_scores(q, k) + (1.0 if q.shape[-1] > 64 else 0.0)

    module = SimpleNamespace(__name__="mine", attention_scores=attention_scores)
    least = oracle.shrink(module, oracle.random_case("attention_scores", n=5, m=6, d=80), seconds=60)
    assert least.note.startswith("fails from d = 65 on, not at 64; ") and least.flags[0] == "head_size"


def test_fuzzing_at_a_tile_draws_sizes_around_it():
    assert oracle.fuzz(broken_after(700), rounds=6).passed  # beyond the largest without
    report = oracle.fuzz(broken_after(700), rounds=2, tile=700)
    assert not report.passed and "fails from 701 keys on, not at 700" in str(report)
    assert {1023, 1024, 1025, 2049} >= {edge("lse", i, 0, tile=1024).m for i in range(12)} - {7}
    with pytest.raises(ValueError, match="tile must be at least 2, got 1"):
        oracle.fuzz(reference, tile=1)


def test_fuzzing_in_rounds_draws_the_same_cases_whatever_a_module_offers():
    whole = oracle.fuzz(reference, rounds=2, seed=4)
    part = oracle.fuzz(SimpleNamespace(__name__="mine", lse=reference.lse), rounds=2, seed=4)
    drawn = {report.case.id: report.case.note for report in whole.reports}
    assert len(part.reports) == 2 and all(drawn[r.case.id] == r.case.note for r in part.reports)
    assert {r.case.id for r in oracle.fuzz(reference, rounds=2, seed=5, operator="lse").reports}.isdisjoint(drawn)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        oracle.fuzz(reference, rounds=0)


@pytest.mark.parametrize("mask", ["all", "empty", "heads"])
@pytest.mark.parametrize("operator", [name for name in AXES if name not in UNMASKED])
def test_expected_values_are_zero_at_padding_and_where_a_side_has_no_token(operator, mask):
    first = {"sinkhorn": {"n_iter": 0}, "entropic_c_transform": {"onto": "query"}}.get(operator, {})
    for side in SIDES:
        for given, arguments in (((), {}), (OPTIONAL.get(operator, ()), first)):
            said = dict(n=6, m=5, mask=mask, side=side, given=given, arguments=arguments)
            case = oracle.random_case(operator, **said, padding="100" if operator == "marginal_error" else "nan")
            for name, where in case.must_be_zero.items():
                gradient = name.startswith("gradient of ")
                x = case.gradients[name.removeprefix("gradient of ")] if gradient else case.outputs[name]
                assert not np.any(x[where]), (side, given, name)


@pytest.mark.parametrize("side", ["query", "key"])
def test_a_sequence_without_tokens_on_one_side_has_no_loss(side):
    for operator in ("dual_loss", "kl_loss"):
        case = oracle.random_case(operator, mask="all", side=side)
        assert not np.any(case.outputs["loss"])
        assert not np.any(case.gradients["query_dual"])


def test_what_hangs_on_a_rounding_is_not_asked():
    for dtype in ("float32", "bfloat16"):
        case = oracle.random_case(
            "kantorovich_potentials_1d", n=65, m=257, given=("x_weights", "y_weights"), mask="holes", seed=8
        ).at(dtype)
        for index in np.ndindex(2, 2):
            x, y = (case.inputs[side][index][case.inputs[f"{side}_mask"][index[0], 0]] for side in ("x", "y"))
            a, b = (
                case.inputs[f"{side}_weights"][index][case.inputs[f"{side}_mask"][index[0], 0]]
                for side in ("x", "y")
            )
            assert len(set(x)) == len(x) and len(set(y)) == len(y)
            assert not ties.levels_nearly_meet(x, y, a, b)
    x, y = np.asarray([0.0, 1e-9, 1.0]), np.asarray([0.0, 0.5, 1.0])
    phi, _ = reference.kantorovich_potentials_1d(x, y, cost="bilinear")
    valid = np.ones(3, bool)
    near = ties.minimum_nearly_tied(x, y, phi, valid, valid, "bilinear")
    assert near.tolist() == [True, True, False]  # which of the first two samples attains the minimum


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (dict(operator="sinkhron"), "operator must be one of attention_scores"),
        (dict(operator="lse", n=0), "n must be an integer of at least 1, got 0"),
        (dict(operator="lse", mask="lef"), "mask must be one of none, full"),
        (dict(operator="lse", given=("init",)), "lse has no optional init; it has none"),
        (dict(operator="lse", arguments={"n_iter": 3}), "lse has no argument n_iter; it has epsilon"),
        (dict(operator="lse", width=3), "nothing is called width; there are operator, n, m"),
    ],
)
def test_mistakes_in_a_recipe_are_told(said, message):
    with pytest.raises(ValueError, match=message):
        oracle.random_case(**said)


def test_recipes_are_written_and_read():
    recipe = Recipe("sinkhorn", n=5, given=("init",), arguments={"epsilon": 0.5}, seed=9)
    assert Recipe.read(recipe.written()) == recipe
    assert set(recipe.written()) == {"operator", "n", "given", "arguments", "seed"}


C_SOURCE = """#include <cmath>
#include <cstdint>
template <class T> void scores(const T* q, const T* k, T* out, int64_t problems, int64_t n, int64_t m, int64_t d) {
    for (int64_t b = 0; b < problems; ++b)
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < m; ++j) {
                double sum = 0;
                for (int64_t a = 0; a < d; ++a) sum += double(q[(b * n + i) * d + a]) * k[(b * m + j) * d + a];
                out[(b * n + i) * m + j] = sum / std::sqrt(double(d));
            }
}
extern "C" void attention_scores_float32(const float* q, const float* k, float* out, int64_t b, int64_t n, int64_t m,
                                         int64_t d) { scores(q, k, out, b, n, m, d); }
extern "C" void attention_scores_float64(const double* q, const double* k, double* out, int64_t b, int64_t n, int64_t m,
                                         int64_t d) { scores(q, k, out, b, n, m, d); }
"""


def test_a_starter_for_a_library_in_c_gives_it_check_and_fuzz(tmp_path, capsys):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path, source = tmp_path / "mine_in_c.py", tmp_path / "mine_in_c.cpp"
    source.write_text(C_SOURCE, encoding="utf-8")
    library = path.with_suffix(".so")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    assert cli.main(["oracle", "new", str(path), "--framework", "ctypes"]) == 0
    for dtype in ("float32", "float64"):
        assert cli.main(["oracle", "check", str(path), "--dtype", dtype]) == 0
    assert cli.main(["oracle", "fuzz", str(path), "--rounds", "3", "--tile", "64"]) == 0
    assert (
        "attention_scores" not in capsys.readouterr().out.partition("not there, not checked:")[2].splitlines()[0]
    )


def test_the_starter_of_numpy_has_a_backward_pass(tmp_path, capsys):
    path = tmp_path / "with_backward.py"
    assert cli.main(["oracle", "new", str(path)]) == 0
    assert cli.main(["oracle", "check", str(path), "--require-gradients"]) == 0


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_a_starter_adapter_passes(framework, tmp_path, capsys):
    pytest.importorskip(framework)
    path = tmp_path / f"starter_of_{framework}.py"
    assert cli.main(["oracle", "new", str(path), "--framework", framework]) == 0
    assert cli.main(["oracle", "check", str(path), "--dtype", "float32", "--version", "1"]) == 0
    assert cli.main(["oracle", "new", str(path)]) == 2  # it is there already
    assert "is there already" in capsys.readouterr().err
