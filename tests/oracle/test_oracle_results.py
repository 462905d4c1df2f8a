"""Results in files: what is missing or has no known name is told, and numbers of another dtype are recognised."""

import json

import numpy as np
import pytest

from asap_ref import cli, oracle
from asap_ref.oracle import exchange, results, stored


def write_outputs(folder, case, dtype=np.float32):
    (folder / case.id / "gradients").mkdir(parents=True)
    for name, x in case.outputs.items():
        np.save(folder / case.id / f"{name}.npy", x.astype(dtype))
    for name, x in case.gradients.items():
        np.save(folder / case.id / "gradients" / f"{name}.npy", x.astype(dtype))


@pytest.fixture
def one(tmp_path):
    """Vectors and results of one case."""
    exchange.save_cases(tmp_path / "vectors", [oracle.case("two_sided_c_transform/left_padding")], "float32")
    (case,) = stored.read_cases(tmp_path / "vectors")
    write_outputs(tmp_path / "results", case)
    return case, tmp_path / "results", ["oracle", "check-files", str(tmp_path / "results"), "--vectors",
                                        str(tmp_path / "vectors")]  # fmt: skip


def test_results_in_files_are_judged(one, capsys):
    case, folder, command = one
    assert cli.main([*command, "--require-gradients"]) == 0
    assert "1 of 1 cases passed" in capsys.readouterr().out
    (folder / case.id / "gradients" / "scores.npy").unlink()
    assert cli.main(command) == 0
    capsys.readouterr()
    assert cli.main([*command, "--require-gradients"]) == 1
    out = capsys.readouterr().out
    assert "all that fails there is absent: gradient of scores" in out
    assert "look at" not in out and "explains" not in out
    (folder / case.id / "key_dual.npy").unlink()
    assert cli.main(command) == 1
    assert "key_dual               MISSING" in capsys.readouterr().out


def test_what_nothing_is_called_is_named_with_the_near_name(one):
    case, folder, command = one
    here = folder / case.id
    (here / "key_dual.npy").rename(here / "key_duel.npy")
    np.save(here / "gradients" / "query_mask.npy", np.zeros(3))
    for name in ("two_sided_c_transform/left_paddings", "sinkhron/plain"):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "key_dual.npy", np.zeros(3))
    report = results.check_files(folder, vectors=command[-1])
    told = "\n".join(report.unknown)
    assert len(report.unknown) == 4
    assert "no such output; did you mean 'key_dual'?" in told
    assert "no such gradient; did you mean 'query_dual'?" in told
    assert "no such case; did you mean 'two_sided_c_transform/left_padding'?" in told
    assert "no such operator; did you mean 'sinkhorn'?" in told
    assert all(sentence in str(report) for sentence in report.unknown)


def test_an_output_by_another_name_is_absent_and_nothing_else_is_said(one):
    case, folder, command = one
    for name in case.outputs:
        (folder / case.id / f"{name}.npy").rename(folder / case.id / f"my_{name}.npy")
    text = str(results.check_files(folder, vectors=command[-1], dtype="float32"))
    assert "all that fails there is absent: query_dual, key_dual" in text
    assert "did you mean 'key_dual'?" in text and "look at" not in text


def test_drawn_cases_go_to_another_language_and_back(tmp_path, capsys):
    vectors, folder = tmp_path / "vectors", tmp_path / "results"
    command = ["oracle", "random", "sinkhorn", "--n", "40", "--mask", "left", "--dtype", "float32"]
    assert cli.main([*command, "--save", str(vectors)]) == 0
    assert capsys.readouterr().out.endswith(f"file         {vectors / 'sinkhorn' / 'seed_0.npz'}\n")
    (case,) = stored.read_cases(vectors)
    assert case.inputs["scores"].shape == (2, 2, 40, 35)
    write_outputs(folder, case)
    assert cli.main(["oracle", "check-files", str(folder), "--vectors", str(vectors)]) == 0
    np.save(folder / case.id / "key_dual.npy", 2 * case.outputs["key_dual"].astype(np.float32))
    assert cli.main(["oracle", "check-files", str(folder), "--vectors", str(vectors)]) == 1
    assert "it is the right array times 2" in capsys.readouterr().out


def test_results_in_another_dtype_than_that_of_the_drawn_cases_are_refused(tmp_path):
    case = oracle.random_case("lse", seed=1)
    exchange.save_cases(tmp_path / "vectors", [case], "float64")
    assert json.loads((tmp_path / "vectors" / "manifest.json").read_text(encoding="utf-8"))["dtype"] == "float64"
    write_outputs(tmp_path / "results", case)
    with pytest.raises(
        ValueError, match=r"(?s)is float32, and the cases.*drawn for float64.*--drawn float32 writes"
    ):
        results.check_files(tmp_path / "results", vectors=tmp_path / "vectors")


@pytest.mark.parametrize(("computed", "drawn"), [("float64", "float32"), ("float32", "bfloat16")])
def test_numbers_drawn_for_another_dtype_are_recognised(tmp_path, computed, drawn):
    case = next(case for case in oracle.cases("lse") if case.path is None)
    write_outputs(tmp_path, case.at(drawn), computed)
    with pytest.raises(
        ValueError, match=f"is {computed}, but these are right for the numbers.* drawn for {drawn}"
    ):
        results.check_files(tmp_path)
    np.save(tmp_path / case.id / "key_dual.npy", np.zeros_like(case.outputs["key_dual"], dtype=computed))
    assert not results.check_files(tmp_path).reports[0].passed  # wrong for either: no such error


def test_a_case_that_is_not_asked_in_a_dtype_is_skipped(tmp_path):
    case = oracle.case("kantorovich_potentials_1d/float32_inside")
    other = oracle.case("kantorovich_potentials_1d/unequal_lengths")
    for each in (case, other):
        write_outputs(tmp_path, each)
    report = results.check_files(tmp_path, dtype="float16")
    assert [r.case.id for r in report.reports] == [other.id]
    assert (case.id, "float16 has too few digits for its data") in report.skipped


def test_a_folder_without_results_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        results.check_files(tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"has no files of a case; expected such as attention_scores/plain/scores\.npy"
    ):
        results.check_files(tmp_path)


def test_a_folder_of_folders_with_vectors_is_told(tmp_path):
    exchange.export(tmp_path / "vectors")
    with pytest.raises(FileNotFoundError, match=r"no .*manifest\.json; there is one in .*v1, .*v2: name one"):
        stored.read_cases(tmp_path / "vectors")
