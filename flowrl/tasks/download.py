"""Downloads one file whole or not at all, and continues where an earlier attempt stopped."""

import contextlib
import email.message
import http.client
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowrl.machine import files
from flowrl.machine.progress import Progress
from flowrl.tasks.storage import h5py

_TIMEOUT = 10.0  # seconds without a connection, or without a byte on it
_CHUNK = 1 << 18


class DownloadError(Exception):
    """Why a file could not be downloaded, in one line."""


def fetch(url: str, target: Path, check: Callable[[Path], None]) -> None:
    """Downloads a file to `target`, which appears only when the file is complete and `check` finds nothing wrong.

    An interrupted download stays beside it as `.<name>.<host>.part`, with the server's mark of that version of the
    file (ETag or date). It is continued where the server still has that version, and started again otherwise.

    Args:
        url: Where it is.
        target: Where it is to be.
        check: Raises DownloadError where a file is not what was wanted.

    Raises:
        DownloadError: It did not work; what has arrived is kept for the next call where it is of use.
        UserError: The folder cannot be written, or the disk is full.
    """
    files.make_folder(target.parent)
    part = target.with_name(f".{target.name}.{urlsplit(url).netloc.replace(':', '_')}.part")
    mark = part.with_name(f"{part.name}.mark")
    try:
        _stream(url, part, mark)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {_reason(error)}") from error
    try:
        check(part)
    except DownloadError as error:
        part.unlink()
        raise DownloadError(f"{url}: {error}") from error
    part.replace(target)
    mark.unlink(missing_ok=True)


def _stream(url: str, part: Path, mark: Path) -> None:
    """Brings `part` to the full length of the file.

    Raises:
        OSError, http.client.HTTPException: The connection failed or ended early.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "flowrl"})
    have = part.stat().st_size if part.exists() and mark.exists() else 0
    version = mark.read_text() if have else ""
    if have:
        # If-Range asks for the whole file where it has changed since.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        with error:  # nothing lies after what is here: it is complete, or of another file; the check tells
            return
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OSError("the answer is a web page, not a dataset")
        start = _start(response, have, version)
        length = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        files.require_space(part.parent, length or 0)
        mark.unlink(missing_ok=True)
        with open(part, "ab" if start else "wb") as file:
            if version := _version(response.headers) or (version if start else ""):
                mark.write_text(version)
            _copy(response, file, start, length, urlsplit(url).netloc)


def _copy(response: Any, file: Any, start: int, length: int | None, host: str) -> None:
    total = None if length is None else start + length
    with Progress(f"download from {host}", "byte", total, start) as bar:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.advance(len(chunk))
    if total is not None and file.tell() != total:
        raise OSError(f"the connection ended after {file.tell()} of {total} bytes; another try continues")


def _start(response: Any, have: int, version: str) -> int:
    """Returns at which byte of the file the answer's body starts.

    Raises:
        OSError: The answer is a range that does not continue what is here.
    """
    if response.status != 206:
        return 0
    span = response.headers.get("Content-Range", "")
    if not span.startswith(f"bytes {have}-") or _version(response.headers) not in ("", version):
        raise OSError(f"the server answered with another range ({span!r}) than was asked for")
    return have


def _version(headers: email.message.Message) -> str:
    """Returns the server's strong mark of this version of the file; weak ETags do not promise equal bytes."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def check_npz(part: Path, fields: Collection[str]) -> None:
    """Checks that `part` is a whole .npz file with the fields.

    Raises:
        DownloadError: It is not.
    """
    damage = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)
    with contextlib.suppress(*damage), zipfile.ZipFile(part) as archive:
        missing = {f"{field}.npy" for field in fields} - set(archive.namelist())
        if missing:
            raise DownloadError(f"the file lacks {', '.join(sorted(missing))}")
        if archive.testzip() is None:
            return
    raise DownloadError("what arrived is not a whole .npz file")


def check_hdf5(part: Path, fields: Collection[str]) -> None:
    """Checks that `part` is an HDF5 file that does not end early, with the fields.

    Raises:
        DownloadError: It is not.
    """
    library = h5py()
    try:
        with library.File(part, "r") as file:
            missing = set(fields) - set(file)
    except OSError as error:
        raise DownloadError("what arrived is not a whole HDF5 file") from error
    if missing:
        raise DownloadError(f"the file lacks {', '.join(sorted(missing))}")


def _reason(error: Exception) -> str:
    """Returns one line on what went wrong."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
