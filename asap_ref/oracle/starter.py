"""A starter adapter: a module that passes for one operator, and lists the signatures of the others."""

from __future__ import annotations

from pathlib import Path

from asap_ref.oracle.contract import right_signature
from asap_ref.oracle.stored import operators
from asap_ref.support.outputs import check_files

VJP = '''

def attention_scores_vjp(q, k):
    """Optional, for every operator: the result, and what maps its cotangent to gradients in the order of the arrays."""
    scale = 1 / math.sqrt(q.shape[-1])

    def vjp(d_scores):
        return scale * d_scores @ k, scale * np.swapaxes(d_scores, -1, -2) @ q

    return attention_scores(q, k), vjp
'''
BY_AUTOGRAD = """

# Gradients come from autograd. If you have a backward pass of your own, write attention_scores_vjp(q, k) as well, which
# returns the scores and a function from their cotangent to (dq, dk).
"""
CTYPES = '''import ctypes
from pathlib import Path

import numpy as np

# g++ -O2 -shared -fPIC my_layer.cpp -o my_layer.so makes the library of my_layer.py
LIBRARY = ctypes.CDLL(str(Path(__file__).resolve().with_suffix(".so")))


def call(name, *values):
    """Call void <name>_float32(...) or _float64(...): arrays are pointers, None is null, numbers int64 or double."""

    def passed(x):
        if x is None or isinstance(x, np.ndarray):
            return ctypes.c_void_p(None if x is None else x.ctypes.data)
        return ctypes.c_double(x) if isinstance(x, float) else ctypes.c_int64(x)

    function = getattr(LIBRARY, f"{name}_{values[0].dtype}")
    function.restype = None
    function(*map(passed, values))

'''
CALL = '''    """extern "C" void attention_scores_float32(const float* q, const float* k, float* scores,
    int64_t problems, int64_t n, int64_t m, int64_t d), and with double."""
    q, k = np.ascontiguousarray(q), np.ascontiguousarray(k)  # inputs may be views
    scores = np.empty((*q.shape[:-1], k.shape[-2]), q.dtype)
    call("attention_scores", q, k, scores, math.prod(q.shape[:-2]), q.shape[-2], k.shape[-2], q.shape[-1])
    return scores
'''
FRAMEWORKS = {
    "numpy": (
        "import numpy as np\n",
        "    return x.astype(dtype)\n",
        "    return q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])\n" + VJP,
    ),
    "ctypes": (
        CTYPES,
        "    return np.ascontiguousarray(x, dtype=dtype)\n",
        CALL,
    ),
    "torch": (
        "import torch\n",
        "    return torch.tensor(x, dtype=getattr(torch, dtype))\n",
        "    return q @ k.mT / math.sqrt(q.shape[-1])\n" + BY_AUTOGRAD,
    ),
    "jax": (
        "import jax.numpy as jnp\n",
        "    return jnp.asarray(x, dtype=dtype)  # float64 needs JAX_ENABLE_X64=1\n",
        "    return q @ k.mT / math.sqrt(q.shape[-1])\n" + BY_AUTOGRAD,
    ),
}
TEXT = '''"""My ASAP, for the oracle to check:

    asap-ref oracle check {name} --dtype float32

Arrays and arguments come by keyword, optional arrays only where a case has them. Results have the dtype of the
inputs. Uncomment an operator and write it; its mathematics is in {page}.
"""

import math

{imports}

def to_array(x, dtype):
    """What the oracle passes: NumPy to mine."""
{convert}

def attention_scores(q, k):
{scores}
{others}'''


def write_starter(path, framework="numpy", *, force=False):
    """Write a starter adapter to a file, a new one unless ``force``.

    Raises
    ------
    FileExistsError, ValueError
        If there is such a file, it is no .py, or the framework is unknown.
    """
    path = Path(path)
    if framework not in FRAMEWORKS:
        raise ValueError(f"oracle new: framework must be one of {', '.join(FRAMEWORKS)}, got {framework!r}")
    if path.suffix != ".py":
        raise ValueError(f"oracle new: expected the name of a .py file, got {path}")
    check_files([path], "oracle new", force=force)
    imports, convert, scores = FRAMEWORKS[framework]
    others = []
    for name, known in operators().items():
        if name != "attention_scores":
            shapes = "; ".join(f"{key} {shape}" for key, shape in known["outputs"].items())
            others.append(f"\n# def {right_signature(name)}:\n#     ...  # {shapes}; {known['source']}\n")
    page = "asap_ref/oracle/README.md"
    text = TEXT.format(
        name=path.name, page=page, imports=imports, convert=convert, scores=scores, others="\n".join(others)
    )
    path.write_text(text, encoding="utf-8")
