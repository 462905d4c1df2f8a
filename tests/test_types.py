"""What a type checker knows of the public names: the stub is the signatures, and a user's file is accepted."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asap_ref as ar

ROOT = Path(__file__).resolve().parent.parent
USE = """
import numpy as np
import numpy.typing as npt
from typing import assert_type, Any
import asap_ref as ar

def layer(q: npt.NDArray[np.float32], amortizer: ar.Amortizer) -> npt.NDArray[np.float32]:
    out, vjp = ar.asap_attention_vjp(q, q, q, amortizer)
    dq, dk, dv = vjp(out)
    assert_type(dq, npt.NDArray[np.float32])
    return ar.sinkhorn_attention(q, q, out, n_iter=3, key_mask=np.ones(3, dtype=bool))

scores: npt.NDArray[np.float64] = np.zeros((2, 2))
duals = ar.sinkhorn(scores, epsilon=0.5)
assert_type(duals, ar.Duals)
assert_type(ar.transport_plan(scores, duals), npt.NDArray[np.float64])
assert_type(ar.Transformer.load("model.npz"), ar.Transformer)
assert_type(ar.Amortizer.load("amortizer.npz").of_heads([0]), ar.Amortizer)
"""
MISUSE = {  # a line, and what is said of it
    'ar.sinkhorn(np.zeros((2, 2)), n_iter="3")': "arg-type",
    "ar.sinkhorn(np.zeros((2, 2)), iterations=3)": "call-arg",
    "ar.sinkhorn([[0.0, 0.0]])": "type-var",
    'ar.entropic_c_transform(np.zeros((2, 2)), np.zeros(2), onto="keys")': "arg-type",
    "ar.asap_attention(np.zeros(3), np.zeros(3), np.zeros(3), 8)": "arg-type",
    "ar.sinkorn": "attr-defined",
}


def mypy(text, tmp_path):
    """What mypy says of a user's file, line by line, from an empty folder."""
    (tmp_path / "user.py").write_text(text)
    options = ["--strict", "--follow-imports=silent", "--no-color-output", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *options, "user.py"]
    environment = os.environ | {"MYPYPATH": str(Path(ar.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.slow
def test_a_users_file_and_the_examples_of_the_readme_have_no_error(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    said = mypy("\n".join([*blocks, USE]), tmp_path)
    assert [line for line in said if "import-untyped" not in line] == []  # scikit-learn has no types


@pytest.mark.slow
def test_what_is_wrong_is_said(tmp_path):
    lines = ["import numpy as np", "import asap_ref as ar", *MISUSE]
    said = mypy("\n".join(lines) + "\n", tmp_path)
    found = {int(line.split(":")[1]): line for line in said}
    for number, code in enumerate(MISUSE.values(), 3):
        assert f"[{code}]" in found.get(number, ""), (lines[number - 1], found.get(number))


def test_the_stub_is_written_from_the_signatures():
    path = ROOT / ".ci" / "public_types.py"
    spec = importlib.util.spec_from_file_location("public_types", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.STUB.read_text() == module.formatted(module.stub()), "run python .ci/public_types.py"
