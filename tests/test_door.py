"""What `help` shows of every exported name, how far the definition is, and that nothing floods a terminal."""

import importlib
import importlib.metadata
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import asap_ref as ar
from asap_ref.support.contracts import fast_form_of, operator, vjp_of

FUNCTIONS = [name for name in ar.__all__ if inspect.isfunction(getattr(ar, name))]
CLASSES = [name for name in ar.__all__ if inspect.isclass(getattr(ar, name))]


def test_every_exported_name_is_a_function_or_a_class():
    assert sorted(FUNCTIONS + CLASSES) == sorted(ar.__all__)


@pytest.mark.parametrize("name", ar.__all__)
def test_help_shows_what_one_needs(name):
    text = inspect.getdoc(getattr(ar, name))
    assert "Examples\n--------\n" in text and f"{name}" in text.partition("Examples\n")[2]
    if name in FUNCTIONS:
        assert "Parameters\n----------\n" in text
        assert "Returns\n-------\n" in text or name.endswith("_vjp")  # whose first line says what it returns
        assert "Raises\n" in text or "Contract\n" in text or name == "to_numpy"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_that_help_describes_are_those_of_the_function(name):
    text = inspect.getdoc(getattr(ar, name))
    described = re.search(r"Parameters\n-+\n(.*?)(\n\n|$)", text, re.DOTALL).group(1)
    if described.startswith("Those of"):
        return
    heads = [line.partition(" : ")[0] for line in described.splitlines() if not line.startswith(" ")]
    names = {name.strip(" *") for head in heads for name in head.split(",")}
    assert names == set(inspect.signature(getattr(ar, name)).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_definition_is_at_most_two_hops_away(name):
    """The first hop is the file that `help` names; the second, from a fast form, its See Also."""
    function = getattr(ar, name)
    home = inspect.getsourcefile(inspect.unwrap(function))
    assert f"def {function.__qualname__}(" in Path(home).read_text()
    found = re.search(r"See Also\n-+\n(\S+)\.(\w+) : the definition", function.__doc__)
    assert (found is not None) == (Path(home).parent.name == "fast" or function.__qualname__.startswith("fast_"))
    if found:
        definition = getattr(importlib.import_module(found.group(1)), found.group(2))
        assert inspect.signature(definition) == inspect.signature(function)
        assert function.__doc__.startswith(definition.__doc__)


def test_no_module_is_shadowed_by_a_function_of_its_name():
    shadowed = set()
    root = Path(ar.__file__).parent
    for folder in [root, *(file.parent for file in root.glob("*/__init__.py"))]:
        package = importlib.import_module(".".join(folder.relative_to(root.parent).parts))
        for module in folder.glob("[!_]*.py"):
            if not inspect.ismodule(getattr(package, module.stem, inspect)):
                shadowed.add(f"{package.__name__}.{module.stem}")
    assert not shadowed


def test_shapes_stand_on_the_def_line():
    arrays = "(q: '... H n d', k: '... H m d', v: '... H m p', amortizer, *, "
    masks = "query_mask: '... n' = None, key_mask: '... m' = None)"
    assert str(inspect.signature(ar.asap_attention)) == arrays + masks


def test_the_version_is_that_of_the_distribution():
    assert ar.__version__ == importlib.metadata.version("asap-ref")


# ------------------------------------------------------------------------------------------------------ contracts


def test_a_shape_without_dots_is_exact_and_a_bar_means_or():
    @operator
    def scaled(x: "... n", scale: "n | a n"):
        """Scale."""
        return x * (scale if scale.ndim == 1 else scale[0])

    x = np.ones((2, 3))
    assert scaled(x, np.ones(3)).shape == scaled(x, np.ones((4, 3))).shape == (2, 3)
    for wrong, message in (
        (np.ones((1, 4, 3)), r"scale has shape \(1, 4, 3\), expected \(n,\) or \(a, n\)"),
        (np.ones((4, 2)), r"scale has shape \(4, 2\), expected \(a, n\) with n = 3 as in x"),
        (np.asarray(1.0), r"scale has shape \(\), expected \(n,\) or \(a, n\)"),
    ):
        with pytest.raises(ValueError, match=message):
            scaled(x, wrong)


@pytest.mark.parametrize("decorate", [vjp_of, fast_form_of])
def test_another_form_of_an_operator_takes_the_same_parameters(decorate):
    with pytest.raises(TypeError, match=r"other must have the parameters of softmax_attention"):

        @decorate(ar.softmax_attention)
        def other(q, k, v, *, query_mask=None):
            """Lack a mask."""


# ---------------------------------------------------------------------------------------------------------- reprs

Q, K, _ = np.random.default_rng(0).standard_normal((3, 40, 12, 17, 4))
AMORTIZER = ar.fit_amortizer([(Q, K)], n_slices=4, n_iter=3)
TEACHER = ar.Transformer.create(ar.Architecture(), ar.Attention("sinkhorn", {"n_iter": 3}))
IMAGES = np.random.default_rng(0).standard_normal((40, 8, 8))
COMPILED, _ = ar.compile_model(TEACHER, [IMAGES], n_slices=4, candidates=None, moments=0)
REPORT = ar.fidelity_report(COMPILED, IMAGES)
SHORT = {
    "amortizer": (AMORTIZER, "heads 12"),
    "statistics": (AMORTIZER.statistics, "tokens 680"),
    "slices": (AMORTIZER.families[0], r"Slices\(directions \("),
    "model": (COMPILED, "asap attention"),
    "attention": (COMPILED.attentions[0], "Amortizer: heads 12"),
    "report": (REPORT, "layers 2, heads 12, sequences 40"),
    "duals": (ar.sinkhorn(Q @ K.mT), r"query=\(40, 12, 17\) of float64"),
}


@pytest.mark.parametrize("name", SHORT)
def test_what_is_large_prints_in_a_line(name):
    thing, holds = SHORT[name]
    assert len(repr(thing)) <= 250 and "\n" not in repr(thing)
    assert re.search(holds, repr(thing))


def test_short_duals_print_their_values():
    assert "array([" in repr(ar.Duals(np.zeros(2), np.zeros(3)))


def test_notebooks_show_tables():
    amortizer, report = AMORTIZER._repr_html_(), REPORT._repr_html_()
    assert amortizer.count("<td>") == 13 and f"<td>{AMORTIZER.r_squared[0]:.3f}</td>" in amortizer
    assert report.count("<tr>") == 1 + 24 and "slices" in amortizer and "output error" in report


def test_a_model_is_saved_and_loaded_at_the_top_level(tmp_path):
    COMPILED.save(tmp_path / "model.npz")
    found = ar.load_model(tmp_path / "model.npz")
    np.testing.assert_array_equal(ar.predict(found, IMAGES), ar.predict(COMPILED, IMAGES))
