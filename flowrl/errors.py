"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; its one-line message names what is wrong and the remedy.

    Command-line programs print the message without a traceback and exit with status 2.
    """


class SharedError(UserError):
    """A mistake that all hosts have noticed, and end by together."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean X?"` for the nearest known word, or the list of all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if len(known) <= 30 else ""
