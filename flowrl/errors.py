"""The one kind of error that is the user's to mend."""

import difflib
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path


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


def nearby(path: Path) -> str:
    """Returns `"; did you mean X?"` for what lies in the folder of a missing file and is spelt alike, or nothing."""
    try:
        names = [found.name for found in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def remedy(error: OSError, flag: str = "") -> str:
    """Returns what the system says of a file that cannot be written, and what helps.

    Args:
        error: What it says.
        flag: The flag that names the place, where there is one.
    """
    by = f" with {flag}" if flag else ""
    advice = {
        errno.ENOSPC: "free space",
        errno.EDQUOT: "free space",
        errno.EFBIG: "files may not grow so large here; raise ulimit -f",
        errno.EISDIR: f"there is a folder of that name; give another name{by}",
        errno.ENOTDIR: f"a file stands where a folder is to be; give another place{by}",
        errno.EEXIST: f"a file stands where a folder is to be; give another place{by}",
        errno.ENAMETOOLONG: f"give a shorter name{by}",
        errno.EMFILE: "too many files are open; raise ulimit -n",
    }.get(
        error.errno or 0,
        f"give a place that you may write to{by or ', with --run_dir, --out, or FLOWRL_DATA for data'}",
    )
    return f"{error.strerror or error}; {advice}"


def explained(error: BaseException) -> str | None:
    """Returns one line about a failure of the machine that nobody foresaw, with its remedy; None of any other."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "bad_alloc" in text:
        return "there is not enough memory; give smaller networks, batches or buffers, or fewer runs or --workers"
    if "can't start new thread" in text or (isinstance(error, OSError) and error.errno == errno.EAGAIN):
        return "no more threads or processes can be started; raise ulimit -u and ulimit -v, or give fewer --workers"
    if (platforms := os.environ.get("JAX_PLATFORMS")) and isinstance(error, (RuntimeError, AssertionError)):
        try:
            sys.modules["jax"].devices()
        except (KeyError, RuntimeError, AssertionError):  # with or without a word
            return f"JAX finds no device for JAX_PLATFORMS={platforms}; unset it, or set cpu"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE):
        return f"cannot write{f' {error.filename}' if error.filename else ''}: {remedy(error)}"
    if isinstance(error, ImportError) and ("failed to map" in text or "cannot allocate memory" in text.lower()):
        return "there is not enough memory to load the libraries; raise ulimit -v"
    return None
