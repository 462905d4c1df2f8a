"""Parameters as they start: nested dicts of NumPy arrays, drawn from a seed.

Weights are normal with variance 1 / fan-in, the two that write to the residual stream also divided by the root of
their number (2 n_layers), as in GPT-2; biases are 0, gains 1.
"""

from __future__ import annotations

import numpy as np


class Draw:
    """A generator of parameters in one dtype; what is drawn first depends on nothing that is drawn later."""

    def __init__(self, seed, dtype):
        self.rng, self.dtype = np.random.default_rng(seed), dtype

    def normal(self, *shape, scale):
        """Independent normal numbers of that standard deviation."""
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

    def affine(self, fan_in, fan_out, scale=1.0):
        """Weight (fan_in, fan_out) and bias of `layers.linear`."""
        return {
            "weight": self.normal(fan_in, fan_out, scale=scale * fan_in**-0.5),
            "bias": np.zeros(fan_out, self.dtype),
        }

    def mlp(self, fan_in, hidden, fan_out, scale=1.0):
        """The two maps of `layers.mlp`."""
        return {"up": self.affine(fan_in, hidden), "down": self.affine(hidden, fan_out, scale)}

    def norm(self, width):
        """Gain and bias of `layers.layer_norm`."""
        return {"gain": np.ones(width, self.dtype), "bias": np.zeros(width, self.dtype)}

    def blocks(self, a):
        """The blocks of an architecture: {"block0": ..., ...}."""
        w, residual = a.width, (2 * a.n_layers) ** -0.5
        return {
            f"block{i}": {
                "norm1": self.norm(w),
                "heads": {"qkv": self.affine(w, 3 * w), "out": self.affine(w, w, residual)},
                "norm2": self.norm(w),
                "mlp": self.mlp(w, a.mlp_ratio * w, w, residual),
            }
            for i in range(a.n_layers)
        }
