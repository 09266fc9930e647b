"""The streams that a program prints to: closed ones, broken pipes, full disks, and terminals that know ASCII only."""

import codecs
import contextlib
import io
import os
import signal
import sys
from typing import Any

_PLAIN = {
    "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "±": "+-",
    "√": "sqrt", "“": '"', "”": '"', "‘": "'", "’": "'", "²": "^2", "ⁿ": "^n", "°": " degrees", "µ": "u",
    "ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "é": "e", "á": "a", "ć": "c", "č": "c", "∞": "inf", "∈": "in",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "η": "eta", "θ": "theta", "κ": "kappa",
    "Σ": "Sigma", "ᾱ": "alpha-bar", "ₜ": "_t", "ₓ": "_x",
    "λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ψ": "psi", "ω": "omega",
}  # fmt: skip
_HANDLER = "flowrl.plain"


class Closed(Exception):
    """What the program prints cannot be written: nobody reads the pipe any more, or the disk is full."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Spells what an encoding lacks in ASCII."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


class _Output(io.TextIOWrapper):
    """Standard output, whose failures can be told from those of other files."""

    def write(self, text: str, /) -> int:
        with _failing():
            return super().write(text)

    def flush(self) -> None:
        with _failing():
            super().flush()


class _Complaints(io.TextIOWrapper):
    """Standard error; where it cannot be written to, nobody can be told."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def _failing() -> Any:
    try:
        yield
    except OSError as error:
        raise Closed(error.strerror or str(error)) from error


def open_closed() -> None:
    """Opens standard streams that are closed on the null device, before a file of the program takes their place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for the rest of the process


def prepare() -> None:
    """Makes standard output and standard error take lines at once, spell what they lack, and fail in order."""
    codecs.register_error(_HANDLER, _plain)
    for name, kind in (("stdout", _Output), ("stderr", _Complaints)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if stream is getattr(sys, f"__{name}__"):
            encoding = stream.encoding
            stream.flush()
            stream = kind(stream.buffer, encoding=encoding, errors=_HANDLER, line_buffering=True)
            setattr(sys, name, stream)
        else:  # somebody has put another in its place
            stream.reconfigure(line_buffering=True, errors=_HANDLER)


def flush() -> None:
    """Writes out what was printed.

    Raises:
        Closed: It cannot be.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def complain(text: str) -> None:
    """Prints a line to standard error, if that can be written to."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def give_up(error: Closed) -> int:
    """Puts the null device in the place of an output that cannot be written to; returns the exit status.

    As with other programs a pipe that nobody reads any more is no error to speak of.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    if isinstance(error.__cause__, BrokenPipeError):
        return 128 + signal.SIGPIPE
    complain(f"error: cannot write to standard output ({error}); send it elsewhere, and continue with the same command")
    return 2
