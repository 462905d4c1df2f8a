"""Every public callable takes the dtypes it should, of every module, with the right numbers, and refuses the others.

On JAX, which compiles every step of every function anew, only what is refused; the rest with the slow tests.
"""

import dtypes
import numpy as np
import pytest

import asap_ref as ar

WITHOUT_ARRAYS = {
    "Architecture",
    "Attention",
    "TrainingSettings",
    "array_module",
    "array_namespace",
    "detect_drift",
}
WITHOUT_ARRAYS |= {"load_model", "slice_directions"}
ON_THE_HOST = {"accuracy", "predict", "train"}  # inputs and labels are NumPy's, which has no bfloat16 of its own
CASES = [
    pytest.param(module, dtype, marks=[pytest.mark.slow] if module == "jax" and dtype in dtypes.TOLERANCE else [])
    for module, known in dtypes.MODULES.items()
    for dtype in known
]


def expected_of(name, module, dtype):
    """What a cell of the table must say."""
    if name == "to_numpy":
        return dtypes.REFUSED if dtype == "float8_e4m3fn" else dtypes.RIGHT
    if dtype not in dtypes.TOLERANCE:
        return dtypes.REFUSED
    ours = ON_THE_HOST | ({"compile_model", "fidelity_report"} if module == "numpy" else set())
    return dtypes.REFUSED if dtype == "bfloat16" and name in ours else dtypes.RIGHT


@pytest.mark.parametrize(("module", "dtype"), CASES)
def test_every_callable_is_right_or_refuses(module, dtype):
    pytest.importorskip(module, reason=f"{module} is not installed")
    if dtype == "bfloat16" and module == "numpy":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    if dtypes.dtype_of(module, dtype) is None:
        pytest.skip(f"{module} has no {dtype}")
    with dtypes.switched(module):
        found = {name: dtypes.outcome(name, module, dtype) for name in dtypes.NAMES}
    expected = {name: expected_of(name, module, dtype) for name in found if name not in WITHOUT_ARRAYS}
    assert {name for name in found if found[name] == dtypes.NO_ARRAYS} == WITHOUT_ARRAYS
    assert {name: found[name] for name in expected} == expected


def test_what_is_right_would_not_pass_if_it_were_wrong(monkeypatch):
    """The judge itself: numbers a little off, another dtype, an error of NumPy's own."""
    assert dtypes.outcome("soft_sort", "numpy", "float32") == dtypes.RIGHT
    right = ar.soft_sort

    def off(x):
        return right(x) * 1.01

    def of_another_dtype(x):
        return right(x).astype(np.float64)

    def raw(x):
        raise KeyError(str(x.dtype))

    for wrong, told in ((off, "off by 1.0e-02"), (of_another_dtype, "float32 gives float64"), (raw, "KeyError")):
        monkeypatch.setattr(ar, "soft_sort", lambda x, wrong=wrong: (wrong if x.dtype == np.float32 else right)(x))
        assert dtypes.outcome("soft_sort", "numpy", "float32").startswith(told)
