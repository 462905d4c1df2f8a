"""What a measurement ran on: processor, system and versions, and the card where there is one."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def machine():
    """Describe what a measurement runs on: processor, operating system, versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = f"{names[0]}, {len(names)} cores" if names else processor
    packages = {name: version(name) for name in ("asap-ref", "numpy", "scipy", "array-api-compat")}
    return {"processor": processor, "system": platform.system(), "python": platform.python_version()} | packages


def load_average():
    """Processes that wanted to run in the last five minutes, on the mean; None where the system does not tell."""
    return os.getloadavg()[1] if hasattr(os, "getloadavg") else None


def card():
    """Name of the GPU that CuPy computes on."""
    import cupy

    return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
