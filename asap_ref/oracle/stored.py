"""Cases: one operator on given inputs, with what must come out. Those with files are read from vectors/v1 and v2.

Cases of version 2 whose arrays would be large have no file: the manifest holds their recipe, and drawn.py makes
them when they are asked for.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asap_ref.support.words import did_you_mean

VECTORS = Path(__file__).parent / "vectors"
VERSIONS = tuple(sorted(int(path.name[1:]) for path in VECTORS.glob("v*")))


@dataclass(frozen=True)
class Case:
    """One operator on given inputs, with the expected outputs, intermediates and gradients.

    Arrays are NumPy float64 (masks boolean, labels integer) and are read from disk at first use. Inputs are
    exactly representable in float32, so an implementation in float32 starts from the same numbers.

    Examples
    --------
    >>> from asap_ref import oracle
    >>> case = oracle.case("sinkhorn/softmax_start")
    >>> case.operator, case.arguments["n_iter"], sorted(case.outputs)
    ('sinkhorn', 0, ['key_dual', 'query_dual'])
    """

    id: str
    operator: str
    arguments: dict  # epsilon, n_iter, ...: passed by keyword
    flags: tuple  # names of the mistakes that this case catches
    hint: str  # what to look at when it fails
    note: str  # what is particular about it
    source: str  # where the mathematics stands
    second_source: str  # the methods, not ours, that gave the same numbers
    rules: Mapping  # gauge, and for each output and gradient: metric, scale, tolerance by dtype
    path: Path | None  # its file; a drawn case has none

    def at(self, dtype):
        """Return the case for a computation in that dtype: itself, as its file is for all of them."""
        return self

    @functools.cached_property
    def _groups(self):
        groups = {}
        with np.load(self.path, allow_pickle=False) as archive:
            for key in archive.files:
                group, name = key.split("/", 1)
                x = archive[key]
                groups.setdefault(group, {})[name] = x.astype(np.float64) if x.dtype.kind == "f" else x
        return groups

    def _group(self, name):
        return {key: x.copy() for key, x in self._groups.get(name, {}).items()}  # a caller may write on his

    @property
    def inputs(self):
        """Array arguments by name; masks are boolean."""
        return self._group("inputs")

    @property
    def outputs(self):
        """Expected results by name, in the order in which an implementation returns them."""
        found = self._group("outputs")
        return {name: found[name] for name in self.rules["outputs"]}

    @property
    def intermediates(self):
        """What stands between inputs and outputs, by name: duals after each half step, sorted orders, features."""
        return self._group("intermediates")

    @property
    def cotangents(self):
        """For each output, the weights whose inner product with it is differentiated."""
        found = self._group("cotangents")
        return {name: found[name] for name in self.rules["outputs"] if name in found}

    @property
    def gradients(self):
        """Expected gradients of the sum of cotangent times output, by name of the input."""
        found = self._group("gradients")
        return {name: found[name] for name in self.rules["gradients"]}

    @property
    def must_be_zero(self):
        """For an output or ``"gradient of <input>"``, where padding makes it exactly zero: boolean arrays."""
        return self._group("must_be_zero")


@dataclass(frozen=True)
class CaseAtHand(Case):
    """A case whose arrays were not read from a file: ``groups`` holds them as a file would."""

    groups: Mapping = None

    @property
    def _groups(self):
        return self.groups


@functools.cache
def manifest(version=1):
    """Return the manifest as it stands in vectors/v<version>/manifest.json."""
    path = VECTORS / f"v{version}" / "manifest.json"
    if not path.exists():
        known = ", ".join(sorted(p.name.removeprefix("v") for p in VECTORS.glob("v*")))
        raise ValueError(f"oracle: no vectors of version {version!r}; there are: {known}")
    return json.loads(path.read_text(encoding="utf-8"))


def _versions(version):
    return VERSIONS if version is None else (version,)


@functools.cache
def _all_cases(version):
    if version is None:
        return tuple(case for each in VERSIONS for case in _all_cases(each))
    return tuple(_read(manifest(version), VECTORS / f"v{version}"))


def read_cases(folder):
    """Return the cases of another folder that has a manifest.json, such as ``oracle random --save`` writes."""
    return list(_read(read_manifest(folder), Path(folder)))


def read_manifest(folder):
    """Return the manifest of another folder; if there is none, the error names the folders in it that have one."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        below = sorted(str(found.parent) for found in Path(folder).glob("*/manifest.json"))
        told = f"; there is one in {', '.join(below)}: name one of these" if below else ""
        raise FileNotFoundError(f"no {path}{told}")
    return json.loads(path.read_text(encoding="utf-8"))


def _read(listed, folder):
    def common(entry):
        return dict(
            id=entry["id"],
            operator=entry["operator"],
            flags=tuple(entry["flags"]),
            hint="\n".join(f"{flag}: {listed['flags'][flag]}" for flag in entry["flags"]),
            note=entry["note"],
            source=listed["operators"][entry["operator"]]["source"],
        )

    for entry in listed["cases"]:
        yield Case(
            **common(entry),
            arguments=entry["arguments"],
            second_source=entry["second_source"],
            rules={key: entry[key] for key in ("gauge", "outputs", "gradients")},
            path=folder / entry["file"],
        )
    if listed.get("drawn"):
        from asap_ref.oracle.drawn import DrawnCase, Recipe  # built on this file

        for entry in listed["drawn"]:
            yield DrawnCase.of(Recipe.read(entry["recipe"]), **common(entry))


def operators(version=None):
    """Return what the manifest says of each operator: its arguments, results and source, lowest floor first."""
    return dict(manifest(_versions(version)[-1])["operators"])  # each version has all those of the one before


def flags(version=None):
    """Return the hint of each flag, by name."""
    return dict(manifest(_versions(version)[-1])["flags"])


_known_flags = flags  # `flags` is also the name of an argument


def cases(operator=None, flags=None, version=None):
    """Return the cases of an operator, or with certain flags, or all of them.

    Parameters
    ----------
    operator : str, optional
    flags : str or collection of str, optional
        Cases with at least one of them.
    version : int, optional
        Version of the vectors; a released version never changes. Without it those of all versions: each adds cases
        to the ones before.

    Returns
    -------
    list of Case

    Raises
    ------
    ValueError
        If there is no such operator, flag or version.

    Examples
    --------
    >>> from asap_ref import oracle
    >>> all("padding" in case.flags for case in oracle.cases(flags="padding"))
    True
    """
    known_operators, known_flags = operators(version), _known_flags(version)
    wanted = {flags} if isinstance(flags, str) else set(flags or ())
    if operator is not None and operator not in known_operators:
        raise ValueError(f"oracle: no operator {operator!r}; there are: {', '.join(known_operators)}")
    if wanted - set(known_flags):
        raise ValueError(
            f"oracle: no flag {', '.join(sorted(wanted - set(known_flags)))}; there are: {', '.join(known_flags)}"
        )
    return [
        case
        for case in _all_cases(version)
        if operator in (None, case.operator) and (not wanted or wanted & set(case.flags))
    ]


def case(id, version=None):
    """Return the case of that id.

    Raises
    ------
    ValueError
        If there is none; the message names those of the same operator.
    """
    for found in _all_cases(version):
        if found.id == id:
            return found
    near = [c.id for c in _all_cases(version) if c.operator == id.split("/")[0]]
    told = f"there are: {', '.join(near)}" if near else "see oracle.cases()"
    raise ValueError(f"oracle: no case {id!r}; {told}{did_you_mean(id, [c.id for c in _all_cases(version)])}")


def parametrize(operator=None, flags=None, version=None):
    """Return a pytest mark that runs a test once for each case, as its argument ``case``.

    Examples
    --------
    >>> from asap_ref import oracle
    >>> @oracle.parametrize("sinkhorn")
    ... def test_sinkhorn(case):
    ...     report = oracle.check(case, my_sinkhorn(**case.inputs, **case.arguments))
    ...     assert report.passed, report
    """
    import pytest

    found = cases(operator, flags, version)
    return pytest.mark.parametrize("case", found, ids=[case.id for case in found])
