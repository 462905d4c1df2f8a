"""Where operators run: array modules with their devices, dtypes and switches, and how to bring arrays there."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from asap_ref.support.arrays import array_module


@dataclass(frozen=True)
class Backend:
    """An array module in one configuration."""

    name: str
    module: str
    device: str | None = None
    dtypes: tuple = ("float64", "float32")
    x64: bool = True  # JAX computes in float64 only where it is told so

    def missing(self):
        """Why it cannot run here, or None."""
        if find_spec(self.module) is None:
            extra = {"cupy": "cuda12", "torch": "peers"}.get(self.module, "test")
            return f"{self.module} is not installed: pip install 'asap-ref[{extra}]'"
        if self.module == "cupy":
            import cupy

            return None if cupy.is_available() else "no CUDA device was found"
        return None

    @contextmanager
    def __call__(self, dtype):
        """Give (module, place): place brings a NumPy array there, in that dtype unless it is a mask or integer."""
        with ExitStack() as switches:
            if self.module == "jax":
                import jax

                switches.enter_context(jax.enable_x64(self.x64))
            xp = array_module(self.module)
            where = {"device": xp.Device(self.device)} if self.device else {}

            def place(x):
                kind = getattr(xp, dtype) if x.dtype.kind == "f" else xp.bool if x.dtype == bool else None
                return xp.asarray(np.asarray(x).copy(), dtype=kind, **where)

            yield xp, place


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("numpy", "numpy"),
        Backend("array_api_strict", "array_api_strict"),
        Backend("array_api_strict, second device", "array_api_strict", "device1"),
        Backend("array_api_strict, no float64", "array_api_strict", "no_float64", dtypes=("float32",)),
        Backend("torch", "torch"),
        Backend("jax, x64", "jax", dtypes=("float64",)),
        Backend("jax", "jax", dtypes=("float32",), x64=False),
        Backend("cupy", "cupy"),
    )
}
CASES = [(name, dtype) for name, backend in BACKENDS.items() for dtype in backend.dtypes]
