"""The oracle's vectors: made again they are the same, they are whole, documented, and in the wheel."""

import hashlib
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from asap_ref import oracle
from asap_ref.oracle.stored import VECTORS, manifest

ROOT = Path(__file__).parents[2]
MAKING = Path(__file__).parent / "making"
README = (VECTORS.parent / "README.md").read_text(encoding="utf-8")
RELEASED = "e680baed129afc97d993c57ebec912225359eee00ad692082296d479e70538b0"  # of v1/manifest.json
KILOBYTES = {1: 700, 2: 3000}  # of the vectors of a version, at most


@pytest.fixture(scope="module")
def making():
    pytest.importorskip("torch")
    if np.finfo(np.longdouble).nmant != 63:
        pytest.skip("vectors are made in 80-bit numbers, which this machine lacks")
    sys.path.insert(0, str(MAKING))
    try:
        import generate
        import generate_v2

        generate.v2 = generate_v2
        yield generate
    finally:
        sys.path.remove(str(MAKING))


@pytest.fixture(scope="module")
def fresh(making, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    making.generate(folder)  # refuses where the second source disagrees
    return folder


@pytest.mark.slow
def test_generated_again_and_judged_again_the_vectors_are_the_same(making, fresh):
    # on the machine that wrote them byte for byte; a logarithm of another processor may differ in its last bit
    assert making.contradictions(fresh, VECTORS / "v1") == []


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(making, fresh, tmp_path):
    making.generate(tmp_path)
    assert making.differences(fresh, tmp_path) == []


@pytest.mark.slow
def test_version_2_made_again_and_judged_again_is_the_same(making, tmp_path):
    making.v2.write(tmp_path)  # refuses where the second source disagrees
    assert making.contradictions(tmp_path, VECTORS / "v2") == []


def test_comparison_of_vectors_sees_what_it_must(making, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    x = np.arange(1.0, 5.0)
    making.write_npz(tmp_path / "a" / "x.npz", {"inputs/x": x.astype(np.float32), "outputs/y": x})
    for change, same in ((1 + 1e-15, True), (1 + 1e-9, False)):
        making.write_npz(tmp_path / "b" / "x.npz", {"inputs/x": x.astype(np.float32), "outputs/y": x * change})
        assert (making.contradictions(tmp_path / "a", tmp_path / "b") == []) is same
    making.write_npz(tmp_path / "b" / "x.npz", {"inputs/x": np.nextafter(x.astype(np.float32), 9), "outputs/y": x})
    assert making.contradictions(tmp_path / "a", tmp_path / "b") == ["x.npz: inputs/x"]
    for rounding, same in ((1e-17, True), (1e-9, False)):
        for folder, zero in (("a", 0.0), ("b", rounding)):
            making.write_npz(tmp_path / folder / "x.npz", {"inputs/x": np.asarray([1, zero], np.float32)})
        assert (making.contradictions(tmp_path / "a", tmp_path / "b") == []) is same


def test_a_value_that_the_second_source_does_not_confirm_is_refused(making):
    spec = next(spec for spec in making.SPECS if spec.id == "sinkhorn/one_iteration")
    outputs, cotangents, gradients = making.our_values(spec)
    making.judge(spec, outputs, cotangents, gradients)
    off = {name: y + (name == "key_dual") * 1e-13 for name, y in outputs.items()}
    with pytest.raises(making.DisagreementError, match="sinkhorn/one_iteration key_dual, 50 digits"):
        making.judge(spec, off, cotangents, gradients)
    off = {"scores": gradients["scores"] * (1 + 1e-11)}
    with pytest.raises(making.DisagreementError, match="gradient of scores, 50 digits"):
        making.judge(spec, outputs, cotangents, off)


def test_page_of_cases_is_that_of_the_manifest(making):
    assert making.PAGE.read_text(encoding="utf-8") == making.page(VECTORS / "v1" / "manifest.json")
    assert making.v2.PAGE.read_text(encoding="utf-8") == making.page(VECTORS / "v2" / "manifest.json")


# ----------------------------------------------------------------------------------------------- what is committed


@pytest.mark.parametrize("version", [1, 2])
def test_files_are_those_of_the_manifest_and_small(version):
    listed, folder = manifest(version)["cases"], VECTORS / f"v{version}"
    files = {str(p.relative_to(folder).as_posix()) for p in folder.rglob("*.npz")}
    assert files == {entry["file"] for entry in listed}
    for entry in listed:
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert size < KILOBYTES[version] * 1000


def test_version_1_never_changes():
    digest = hashlib.sha256(
        (VECTORS / "v1" / "manifest.json").read_bytes()
    ).hexdigest()  # which has those of the rest
    assert digest == RELEASED


STORED = [case for case in oracle.cases() if case.path is not None]


@pytest.mark.parametrize("case", STORED, ids=[case.id for case in STORED])
def test_cases_are_as_the_page_says(case):
    version = 1 if case.path.is_relative_to(VECTORS / "v1") else 2
    said = next(entry for entry in manifest(version)["cases"] if entry["id"] == case.id)
    operator = oracle.operators()[case.operator]
    assert list(case.inputs) == list(said["inputs"])
    assert set(case.inputs) <= set(operator["inputs"])
    optional = {name for name, shape in operator["inputs"].items() if "optional" in shape}
    assert set(operator["inputs"]) - optional <= set(case.inputs)
    assert set(case.arguments) == set(operator["arguments"])
    assert list(case.outputs) == list(operator["outputs"])
    assert case.flags and set(case.flags) <= set(oracle.flags()) and case.hint and case.note and case.second_source
    section = case.source.removeprefix("README, ")
    assert f"\n### {section}\n" in README and f"`{case.operator}`" in README
    for group in ("inputs", "cotangents"):
        for x in getattr(case, group).values():
            assert x.dtype.kind in "bi" or np.array_equal(x.astype(np.float32), x, equal_nan=True)
    for group in ("outputs", "gradients", "intermediates", "cotangents"):
        assert all(np.all(np.isfinite(x)) for x in getattr(case, group).values())
    assert set(case.gradients) <= set(case.inputs)
    assert set(case.cotangents) == (set(case.outputs) if case.gradients else set())
    for name, zero in case.must_be_zero.items():
        expected = case.outputs.get(name)
        if expected is None:
            expected = case.gradients[name.removeprefix("gradient of ")]
        assert not np.any(expected[zero])


def test_every_flag_and_operator_has_cases():
    assert all(oracle.cases(flags=flag) for flag in oracle.flags())
    assert all(oracle.cases(name) for name in oracle.operators())


def test_files_can_be_read_with_nothing_but_what_the_page_says():
    """As a C program would: zip headers and .npy headers by hand."""
    for case in STORED[::7]:
        data, at, found = case.path.read_bytes(), 0, {}
        while data[at : at + 4] == b"PK\3\4":
            method, size, name_length, extra = struct.unpack("<8xH8xI4xHH", data[at : at + 30])
            assert method == 0
            name = data[at + 30 : at + 30 + name_length].decode("ascii")
            body = data[at + 30 + name_length + extra :][:size]
            assert body[:8] == b"\x93NUMPY\1\0"
            (h,) = struct.unpack("<H", body[8:10])
            header = body[10 : 10 + h].decode("ascii")
            assert "'fortran_order': False" in header and header.endswith("\n")
            kind = re.search(r"'descr': '([^']+)'", header)[1]
            assert f"`{kind}`".replace("|", "\\|") in README
            shape = [int(n) for n in re.search(r"'shape': \(([^)]*)\)", header)[1].replace(",", " ").split()]
            letter = {"<f8": "d", "<f4": "f", "|b1": "?", "<i8": "q"}[kind]
            count = int(np.prod(shape, dtype=int))
            values = struct.unpack(f"<{count}{letter}", body[10 + h :])
            found[name.removesuffix(".npy")] = np.asarray(values, dtype=np.float64).reshape(shape)
            at += 30 + name_length + extra + size
        for group in ("inputs", "outputs", "intermediates", "cotangents", "gradients", "must_be_zero"):
            expected = {f"{group}/{name}": x for name, x in getattr(case, group).items()}
            assert expected.keys() == {name for name in found if name.startswith(f"{group}/")}
            assert all(np.array_equal(found[name], x, equal_nan=True) for name, x in expected.items())


@pytest.mark.slow
def test_a_wheel_has_the_vectors_and_its_oracle_works(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import asap_ref; from asap_ref import oracle, cli; from asap_ref.oracle.stored import VECTORS;"
        "assert (VECTORS.parent / 'README.md').exists() and (VECTORS.parent / 'CASES.md').exists();"
        "print(asap_ref.__file__, len(oracle.cases()));"
        "raise SystemExit(cli.main(['oracle', 'check', 'asap_ref.oracle.reference']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert str(tmp_path) in done.stdout
    n = len(oracle.cases())
    assert f"{n} of {n} cases passed" in done.stdout
