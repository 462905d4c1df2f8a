"""Settings of the whole process, changed while somebody needs it and restored when nobody does any more."""

from __future__ import annotations

import contextlib
import os
import threading


class Held(contextlib.AbstractContextManager):
    """Hold a setting for all who ask, on whatever thread: the first in makes it, the last out restores it.

    Were each to save what it finds and restore that, the second of two callers that overlap would save what the
    first had set, and would leave it behind.

    Parameters
    ----------
    make : callable
        Returns a context manager that makes the setting and restores it.

    Examples
    --------
    >>> import warnings
    >>> quiet = Held(warnings.catch_warnings)
    >>> with quiet, quiet:
    ...     warnings.simplefilter("ignore")
    """

    def __init__(self, make):
        self.make = make
        # A handler of signals may come in anywhere, on the thread that has the lock. It finds the count raised from
        # before the setting is made until after it is restored: it never takes what was made for what was there.
        self.lock, self.inside, self.made = threading.RLock(), 0, None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.begin_anew)

    def __enter__(self):
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                try:
                    self.made = self.make()
                    self.made.__enter__()
                except BaseException:
                    self.inside -= 1
                    raise

    def __exit__(self, *error):
        with self.lock:
            if self.inside == 1:
                self.made.__exit__(None, None, None)
            self.inside = max(self.inside - 1, 0)

    def begin_anew(self):
        """Restore the setting in a forked child: who held it, or the lock, did not come along."""
        self.lock = threading.RLock()
        if self.inside:
            self.made.__exit__(None, None, None)
        self.inside = 0
