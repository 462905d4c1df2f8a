"""Words of a user that are not known: answered with the near ones, on the command line and elsewhere."""

from __future__ import annotations

import argparse
import difflib


def did_you_mean(word, known):
    """Say which of the known words are near, as the end of a clause; nothing where none is.

    Examples
    --------
    >>> did_you_mean("digit", ["digits", "topics"]), did_you_mean("x", ["digits"])
    ("; did you mean 'digits'?", '')
    """
    near = difflib.get_close_matches(str(word), [str(each) for each in known], n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


class Parser(argparse.ArgumentParser):
    """A parser that suggests the near word where a choice, a command or an option is not known."""

    def parse_known_args(self, args=None, namespace=None):
        """Parse as usual, but let nothing be left over: here, where the options of this command are known."""
        namespace, left = super().parse_known_args(args, namespace)
        if left:
            options = [option for action in self._actions for option in action.option_strings]
            hints = (did_you_mean(word.partition("=")[0], options) for word in left if word.startswith("-"))
            self.error(f"unrecognized arguments: {' '.join(left)}{next(filter(None, hints), '')}")
        return namespace, left

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            message = f"invalid choice: {value!r}{did_you_mean(value, action.choices)} (choose from {known})"
            raise argparse.ArgumentError(action, message)
