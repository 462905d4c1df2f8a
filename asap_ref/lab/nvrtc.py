"""What the kernels take of a card, told without one: NVRTC compiles them from NVIDIA's wheels, and ptxas reports.

The wheels are those of the ``peers`` extra. Registers bound how many blocks a multiprocessor (65,536 registers) holds
at once, as shared memory does; what spills goes to memory and back.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from asap_ref.fast.kernels.build import sort_bytes

CARDS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}  # A100, H100: bytes of shared memory a block may have
SORTED = 4096  # tokens of a slice, whose number says what sorting takes


class Resources(NamedTuple):
    """What a kernel takes."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread, stores and loads
    shared: int  # bytes of a block


def missing():
    """Say why nothing can be compiled here, or None."""
    wheels = {"cuda_nvrtc": "nvidia-cuda-nvrtc-cu12", "cuda_runtime": "nvidia-cuda-runtime-cu12"}
    absent = [wheel for package, wheel in wheels.items() if _folder(package) is None]
    return f"not installed: {', '.join(absent)} (pip install 'asap-ref[peers]')" if absent else None


def compiled(text, card):
    """Compile CUDA text for a card, "sm_90" say, and return the log; RuntimeError, with it, where it is refused."""
    return _compile(text, card)[0]


def instructions(text, card):
    """{kernel: its PTX, a list of lines} of a CUDA text; ptxas makes of it what the card runs."""
    kernels = re.findall(r"\.entry (\w+)\(.*?\n\{\n(.*?)\n\}", _compile(text, card)[1], re.DOTALL)
    return {name: [line.strip() for line in body.splitlines()] for name, body in kernels}


def _compile(text, card):
    library = ctypes.CDLL(str(next((_folder("cuda_nvrtc") / "lib").glob("libnvrtc.so.*"))))
    program = ctypes.c_void_p()
    options = ["--std=c++17", f"--gpu-architecture={card}", f"-I{_folder('cuda_runtime') / 'include'}"]
    options = [option.encode() for option in (*options, "--ptxas-options=-v")]
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        code = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _told(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog)
        if code:
            raise RuntimeError(log)
        return log, _told(program, library.nvrtcGetPTXSize, library.nvrtcGetPTX)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _told(program, get_size, get):
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    get(program, text)
    return text.value.decode()


def resources(build, card):
    """{kernel: Resources} of a `Build` on a card."""
    found = {}
    for text in compiled(build.source(), card).split("Compiling entry function '")[1:]:
        name = text.partition("'")[0]
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", text)))
        shared = sort_bytes(build.real, SORTED) if name == "slices" else build.shared.get(name, 0)
        found[name] = Resources(int(re.search(r"Used (\d+) registers", text)[1]), spilled, shared)
    return found


def _folder(package):
    """Where a wheel of NVIDIA's put its files, or None."""
    found = importlib.util.find_spec("nvidia") and importlib.util.find_spec(f"nvidia.{package}")
    return Path(next(iter(found.submodule_search_locations))) if found else None
