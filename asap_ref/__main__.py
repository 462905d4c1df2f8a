"""``python -m asap_ref`` is the command ``asap-ref``."""

import sys

from asap_ref.cli import main

if __name__ == "__main__":  # a process that is spawned imports this file again, under another name
    sys.exit(main())
