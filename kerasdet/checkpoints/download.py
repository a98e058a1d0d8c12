"""Downloads files over HTTP: resumes interrupted downloads, and checks the hash.

The module uses only Python's standard library. pooch, the usual choice, cannot resume downloads, and requests would be
another dependency without support for ranges, retries and validators.
"""

import base64
import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO

from kerasdet.checkpoints.progress import ProgressBar
from kerasdet.errors import UserError
from kerasdet.files import replacing

TIMEOUT = 30.0  # seconds without a byte
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds to wait before each further try
_ENOUGH = 1 << 20  # a try that transfers this many bytes does not count as failed: slow links break often
_BLOCK = 1 << 18
_SAFE = "/%:@!$&'()*+,;=~"  # characters of a URL's path that are not encoded; "%", because it may be encoded already
_OTHER_WAYS = (
    "set KERASDET_MIRROR to a server or folder that has the file, or convert your own copy with `kerasdet convert`."
)
# HTTP status codes and errors after which another try may succeed
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_PASSING = (TimeoutError, ConnectionResetError, http.client.IncompleteRead)

log = logging.getLogger(__name__)


class _Cut(Exception):
    """Signals that a transfer was incomplete or invalid; another attempt may transfer the rest."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows status code 308 like 307. Python 3.10 does not follow it; remove this class when 3.11 is the minimum."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """Creates the request for the new URL after a redirect. Overrides urllib."""
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def download(url: str, path: Path, digest: tuple[str, str] | None = None) -> None:
    """Downloads a file; resumes an earlier download that was interrupted.

    The file is stored as ``NAME.partial`` until it is complete and its hash is correct; then it is renamed to `path`.
    Only one process at a time may download a file.

    Args:
        url: URL with http, https or file. A user name and password in the URL are sent to its host only.
        path: Path of the file to write. Its folder is created if necessary.
        digest: Algorithm of `hashlib` and the first hexadecimal digits of the file's hash. None: only the length that
            the server states is checked.

    Raises:
        UserError: If the server cannot be reached or refuses, the transfer fails repeatedly, the file has another hash,
            or the file cannot be written. The message says what to do.
    """
    partial = path.with_name(f"{path.name}.partial")
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    resumed = _complete(url, partial)
    try:
        check(partial, digest, shown(url))
    except UserError:
        if not resumed:
            raise
        log.warning("%s, completed from an earlier download, has the wrong hash: the download starts again.", path.name)
        _complete(url, partial)
        check(partial, digest, shown(url))
    with _storing(path):
        os.replace(partial, path)
    _notes(partial).unlink(missing_ok=True)


def check(path: Path, digest: tuple[str, str] | None, origin: str) -> None:
    """Checks the hash of a file, and removes the file if the hash is wrong.

    Args:
        path: Path of the file to check.
        digest: Algorithm of `hashlib` and the first hexadecimal digits of the hash. None: nothing is checked.
        origin: URL or path of the file, for the error message.

    Raises:
        UserError: If the hash does not begin with the digits in `digest`.
    """
    if digest is None:
        return
    algorithm, expected = digest
    found = file_hash(path, algorithm)
    if not found.startswith(expected):
        size = path.stat().st_size
        path.unlink()
        raise UserError(
            f"{origin} has the wrong hash: the {algorithm.upper()} of its {size:,} bytes begins with "
            f"{found[: max(12, len(expected))]}; expected {expected}. The file was damaged or is another file, and was "
            "removed. Try again, or use another mirror (KERASDET_MIRROR)."
        )


def file_hash(path: Path, algorithm: str) -> str:
    """Computes the hash of a file.

    Args:
        path: Path of the file.
        algorithm: Name of an algorithm of `hashlib`, such as "sha256".

    Returns:
        The hash in hexadecimal digits.
    """
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def shown(url: str) -> str:
    """Removes user name and password from a URL, for messages.

    Args:
        url: URL that may contain a user name and a password.

    Returns:
        The URL without user name and password.
    """
    return re.sub(r"(?<=://)[^/?#]*@", "", url)  # up to the last @: passwords may contain one


def _complete(url, partial):
    """Downloads the rest of a partial file, in several attempts. Returns whether the file had contents before."""
    start, failed = _size(partial), 0
    most = start  # a server that states a wrong length would otherwise be asked for the same bytes for ever
    while True:
        before = _size(partial)
        try:
            _fetch_rest(url, partial)
            return start > 0
        except urllib.error.HTTPError as error:
            error.close()
            words = str(error.reason).splitlines()  # none from servers that send only the code
            reason = f"answers {error.code}{f' ({words[0]})' if words else ''}"
            if error.code == 416 and before:
                # The file on the server is not longer than the partial file, or has changed
                partial.unlink()
                reason = "has no more bytes than the earlier download"
            elif error.code not in _BUSY:
                raise UserError(f"{shown(url)} {reason}. {_advice(error.code)}") from None
        except UserError:
            raise
        except (_Cut, http.client.HTTPException, OSError, ValueError) as error:  # ValueError: of an invalid URL
            is_cut = isinstance(error, _Cut) or _size(partial) > start
            reason = f"{'failed' if is_cut else 'cannot be reached'} ({_reason(error)})"
            if not is_cut and not isinstance(error, _PASSING):
                raise UserError(f"{shown(url)} {reason}. {_advice(None)}") from None
        failed = 1 if _size(partial) >= most + _ENOUGH else failed + 1
        most = max(most, _size(partial))
        if failed > len(WAITS):
            kept, _, _ = _resumable(url, partial)
            state = f", and {kept:,} bytes are kept in {partial}" if kept else ""
            resuming = " (the download then continues with the missing bytes)" if kept else ""
            raise UserError(
                f"{shown(url)} {reason}; {failed} tries failed{state}. Try again later{resuming}, {_OTHER_WAYS}"
            )
        log.info("%s %s: trying again in %g s.", shown(url), reason, WAITS[failed - 1])
        time.sleep(WAITS[failed - 1])


def _fetch_rest(url, partial):
    """Makes one request, for the whole file or its rest, and appends the received bytes.

    Raises:
        _Cut: If the transfer ends before the length that the server stated, or contains other bytes than requested.
        UserError: If the file cannot be written, for example because the disk is full.
    """
    have, validator, total = _resumable(url, partial)
    if have and have == total:  # an earlier process was killed between the last byte and the renaming
        return
    request = _request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)  # a server whose file has changed sends the whole new one
    opener = urllib.request.build_opener(_Redirects)
    with opener.open(request, timeout=TIMEOUT) as response:
        start, total = _position(response)
        if start != have:  # the file has changed, or the server does not support ranges
            have = 0
            if start:
                raise _Cut(f"the server sent bytes from position {start:,} instead of those that were requested")
        _require_space(partial, total, have)
        with _storing(partial):
            file = partial.open("ab" if have else "wb")
        with file, ProgressBar(partial.name.removesuffix(".partial"), have, total) as progress:
            if not have:
                _note_version(url, partial, response.headers, total)
            while block := response.read1(_BLOCK):  # written at once, so that an interrupted transfer loses nothing
                with _storing(partial):
                    file.write(block)
                    file.flush()
                progress.add(len(block))
    if total is not None and _size(partial) != total:
        raise _Cut(f"{_size(partial):,} of {total:,} bytes received")


def _request(url):
    """Creates the request for a URL; urllib would treat user name and password as a part of the host."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        parts._replace(netloc=host, path=urllib.parse.quote(parts.path, safe=_SAFE)).geturl(),
        headers={"User-Agent": "kerasdet", "Accept-Encoding": "identity"},
    )
    if at:
        credentials = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        # The password must not be sent to another host
        request.add_unredirected_header("Authorization", f"Basic {credentials}")
    return request


def _position(response):
    """Returns the index of the first byte in a response, and the length of the whole file (None if unknown)."""
    if getattr(response, "status", None) == 206:
        match = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", response.headers.get("Content-Range", ""))
        if match is None:
            raise _Cut(
                f"the server answered with the invalid Content-Range header "
                f"{response.headers.get('Content-Range')!r}; expected 'bytes START-END/TOTAL'"
            )
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _resumable(url, partial):
    """Returns how many bytes of a partial file are valid, its version for If-Range, and the total length or None."""
    try:
        notes = json.loads(_notes(partial).read_text())
    except (OSError, ValueError):
        return 0, None, None
    if notes.get("url") != shown(url) or not notes.get("validator"):
        return 0, None, None
    return _size(partial), notes["validator"], notes["total"]


def _note_version(url, partial, headers, total):
    """Stores the version of the file that a new partial file belongs to. Call this while the partial file is empty."""
    tag = headers.get("ETag")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    with _storing(partial), replacing(_notes(partial)) as file:
        file.write_text(json.dumps({"url": shown(url), "validator": validator, "total": total}))


def _notes(partial):
    return partial.with_name(f"{partial.name}.json")


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _require_space(partial, total, have):
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - have > free:
        raise UserError(
            f"{partial.parent} has {free / 1e6:,.0f} MB free, but {partial.name.removesuffix('.partial')} needs "
            f"{(total - have) / 1e6:,.0f} MB: free some space, or set KERASDET_HOME to a folder on another disk."
        )


@contextlib.contextmanager
def _storing(path):
    """Converts an OSError of the `with` block to a UserError about the disk, not the network."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Free some space, or set KERASDET_HOME to a "
            "writable folder; the downloaded part is kept."
        ) from None


def _reason(error):
    """Returns the cause of a network error in a few words."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"no data received for {TIMEOUT:g} s"
    return " ".join((getattr(inner, "strerror", None) or str(inner)).split()) or type(inner).__name__


def _advice(code):
    if code in (401, 403, 407):
        return (
            "Set KERASDET_MIRROR with a user and a password that can read the mirror, such as "
            "https://USER:PASSWORD@HOST/PATH."
        )
    if code in (404, 410):
        return (
            "The server does not have the file: add it to the mirror, unset KERASDET_MIRROR to download from the "
            "publisher, or convert your own copy with `kerasdet convert`."
        )
    return f"Connect to the internet once, {_OTHER_WAYS}"
