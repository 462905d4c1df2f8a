"""NVRTC compiles the kernels for an A100 and an H100, within bounds on registers, spills and shared memory.

The text is that which the emulator runs. figures/speed/kernels.md has what each takes.
"""

import pytest

from asap_ref.fast.kernels.build import BACKWARD, FORWARD, SIZE, chosen
from asap_ref.lab.kernel_time import instruction_mix, least_seconds
from asap_ref.lab.nvrtc import CARDS, compiled, instructions, missing, resources

CASES = [  # real, store, d, p, parts, most registers: 128 let a multiprocessor hold two blocks of 256 threads
    ("float32", "float32", 64, 64, FORWARD, 128),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("float32", "float16", 64, 64, FORWARD, 128),
            ("float32", "bfloat16", 64, 64, FORWARD, 128),
            ("float32", "float32", 64, 64, BACKWARD, 128),
            ("float32", "float32", 128, 128, FORWARD, 128),
            ("float32", "float32", 128, 128, BACKWARD, 255),  # 255 is what there is
            ("float32", "float32", 20, 70, FORWARD, 255),
            ("float64", "float64", 64, 64, FORWARD, 255),
            ("float64", "float64", 64, 64, BACKWARD, 255),
        ]
    ),
]
NVRTC = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@NVRTC
@pytest.mark.parametrize("card", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
@pytest.mark.parametrize(("real", "store", "d", "p", "parts", "registers"), CASES)
def test_kernels_compile_within_bounds(real, store, d, p, parts, registers, card):
    build = chosen(real, store, d, p, CARDS[card], parts)
    kernels = {"lse", "attend", "project", "slices", "moments", "form", "dual"}
    found = resources(build, card)
    assert found.keys() == ({"pull", "gradient"} if parts == BACKWARD else kernels)
    for name, took in found.items():
        assert took.registers <= (32 if name == "slices" else registers)  # of 1,024 threads, two blocks
        assert took.shared <= CARDS[card]
        assert took.spilled <= 16 * SIZE[real]  # a few numbers


@NVRTC
def test_faults_in_the_text_are_named_with_file_and_line():
    text = chosen("float32", "float32", 8, 8, 2**16).source().replace("high + log2(total)", "high + log2(totl)")
    with pytest.raises(RuntimeError, match=r'lse.cu\(\d+\): error: identifier "totl" is undefined'):
        compiled(text, "sm_80")


@NVRTC
def test_exp2_of_a_float_is_one_instruction_of_ptx_that_keeps_denormals():
    found = instructions(chosen("float32", "float32", 8, 8, 2**16).source(), "sm_90")
    for name, lines in found.items():
        exponentials = {line.split()[0] for line in lines if "ex2." in line}
        assert exponentials == ({"ex2.approx.f32"} if name in ("lse", "attend") else set())  # not .ftz.f32


@NVRTC
@pytest.mark.parametrize("d", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_the_instruction_mix_is_that_of_the_formulas(d):
    mix = instruction_mix(chosen("float32", "float32", d, d, CARDS["sm_90"]))
    of_scores, rescalings = 16 * d, 4  # a thread holds 4 x 4 scores; each of its rows rescales its running sum
    products = {"lse": of_scores, "attend": 2 * of_scores}  # attend's second: 64 entries of 4 rows, d / 16 columns
    for name, counts in mix.items():
        assert counts["multiply-adds"] == products[name] + rescalings
        assert counts["exponentials"] == 16 + rescalings
        assert counts["reads"] >= products[name] / 8  # 8 reads, of four numbers each, feed 64 multiply-adds
    for n in (1024, 4096):  # no quicker than the multiply-adds spread evenly over all lanes, at one a cycle
        spread = 8 * n * n * d / (132 * 128 * 1.98e9)
        assert least_seconds(mix["lse"], 8, n, n) >= spread
        assert least_seconds(mix["attend"], 8, n, n) >= 2 * spread
