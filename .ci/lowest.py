"""Print the lowest version of each requirement that pyproject.toml declares, as constraints for pip.

    python .ci/lowest.py > lowest.txt && pip install -c lowest.txt -e '.[test]'

A bound that nobody installs is a guess; the tests run once with the newest versions and once with these.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
DECLARED = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?[>=]=([0-9][^;,\s]*)")  # name, perhaps extras, bound


def lowest(*extras):
    """Lowest versions of what the package needs, and of what these extras of it need: ["name==version", ...]."""
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return ["{}=={}".format(*DECLARED.match(line).groups()) for group in groups for line in group]


if __name__ == "__main__":
    print("\n".join(lowest(*(sys.argv[1:] or ["test"]))))
