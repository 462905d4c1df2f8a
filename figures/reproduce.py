"""Run the main job and keep its table, figure and JSON here: figures/reproduce.{json,md,png,svg}.

python figures/reproduce.py [OPTIONS OF asap-ref reproduce]
"""

import shutil
import sys
import tempfile
from pathlib import Path

from asap_ref.cli import main

FIGURES = Path(__file__).resolve().parent

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as out:
        code = main(["reproduce", "--out", out, *sys.argv[1:]])
        if code:
            sys.exit(code)
        for source, target in {
            "report.json": "reproduce.json",
            "report.md": "reproduce.md",
            "reproduce.png": "reproduce.png",
            "reproduce.svg": "reproduce.svg",
        }.items():
            shutil.copyfile(Path(out) / source, FIGURES / target)
