"""A starter adapter: a module that passes for one operator, and lists the signatures of the others."""

from __future__ import annotations

from pathlib import Path

from asap_ref.oracle.contract import right_signature
from asap_ref.oracle.stored import operators
from asap_ref.support.outputs import check_files

FRAMEWORKS = {
    "numpy": (
        "import numpy as np\n",
        "    return x.astype(dtype)\n",
        "    return q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])\n",
    ),
    "torch": (
        "import torch\n",
        "    return torch.tensor(x, dtype=getattr(torch, dtype))\n",
        "    return q @ k.mT / math.sqrt(q.shape[-1])\n",
    ),
    "jax": (
        "import jax.numpy as jnp\n",
        "    return jnp.asarray(x, dtype=dtype)  # float64 needs JAX_ENABLE_X64=1\n",
        "    return q @ k.mT / math.sqrt(q.shape[-1])\n",
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
