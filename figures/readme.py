"""Put the generated tables into README.md, between their markers; nothing there is typed by hand.

python figures/readme.py            rewrite README.md
python figures/readme.py --check    only say whether it is up to date
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end of table -->", re.DOTALL)


def filled(text):
    """README text with each marked block replaced by the file that its marker names."""
    return MARKED.sub(
        lambda m: f"<!-- table: {m[1]} -->\n{(ROOT / m[1]).read_text().strip()}\n<!-- end of table -->", text
    )


def main():
    """Rewrite or check."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    if "--check" in sys.argv:
        sys.exit(0 if filled(text) == text else "README.md is out of date: run python figures/readme.py")
    readme.write_text(filled(text))


if __name__ == "__main__":
    main()
