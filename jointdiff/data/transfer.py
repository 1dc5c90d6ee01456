"""Bring the bytes of one place, a path or an address, to a part file: patiently, and onwards from where it stopped."""

from __future__ import annotations

import base64
import email.utils
import errno
import http.client
import json
import math
import os
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jointdiff.addresses import without_secrets

T = TypeVar("T")

ATTEMPTS = 3  # in a row, where the failure may pass
STRIDE = 16 << 20  # bytes of net progress after which the attempts are counted anew; bounds them by the file's size
WAIT = 2.0  # seconds before the second attempt; doubled from then on
WAIT_CAP = 120.0  # seconds, however long a server's Retry-After is
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 18
SCHEMES = ("http", "https", "ftp", "file")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a network never answers so: it is our disk


class PlaceError(Exception):
    """One place that did not give the file."""


class StorageError(Exception):
    """The folder that the file goes to takes no more: no other place helps."""


class StoppedError(Exception):
    """The user interrupted; the part stays."""


def is_url(place: str) -> bool:
    """Say whether a place is an address, and not a path."""
    return "://" in place


def say(text: str) -> None:
    """Write one line beside whatever bar is shown."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


class Meter:
    """One progress for all files under way: a bar on a terminal, a plain line now and then in a log.

    Args:
        label: what is fetched.
        every: seconds between lines where there is no terminal.
    """

    def __init__(self, label: str, *, every: float = 10.0) -> None:
        self.label = label
        self.stop = threading.Event()  # set to make every transfer end
        self._files: dict[str, tuple[int, int | None]] = {}  # bytes that are here, and in all
        self._moved = 0
        self._lock = threading.Lock()
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._started = self._shown = time.monotonic()
        self._bar: Any = None

    def at(self, name: str, have: int, total: int | None, *, moved: int = 0) -> None:
        """Note that ``have`` of a file's bytes are here, ``moved`` of them just came."""
        if self.stop.is_set():
            raise StoppedError
        with self._lock:
            self._files[name] = have, total
            self._moved += moved
            if time.monotonic() - self._shown >= self._every:
                self._shown = time.monotonic()
                self._show()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        from tqdm import tqdm

        have = sum(have for have, _ in self._files.values())
        totals = [total for _, total in self._files.values()]
        total = None if None in totals else sum(filter(None, totals))
        if self._terminal:
            if self._bar is None:
                self._bar = tqdm(desc=self.label, unit="B", unit_scale=True, leave=False)
                self._bar.start_t -= time.monotonic() - self._started
            # What an earlier run brought does not count for the rate.
            self._bar.total, self._bar.n, self._bar.initial = total, have, have - self._moved
            self._bar.refresh()
            return
        rate = max(self._moved, 1) / max(time.monotonic() - self._started, 1e-9)
        line = f"{self.label}: {size_text(have)}" + ("" if total is None else f" of {size_text(total)}")
        line += f", {size_text(rate)}/s"
        if total is not None:
            line += f", {tqdm.format_interval((total - have) / rate)} left"
        say(line)


def size_text(count: float) -> str:
    """Return a number of bytes as people read it."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count) / 3), 4)
    return f"{count / 1000**power:.1f} {['', 'kB', 'MB', 'GB', 'TB'][power]}"


def part_of(path: Path) -> tuple[Path, Path]:
    """Return where the bytes of an unfinished file are kept, and what is known of them."""
    part = path.with_name(f".{path.name}.part")
    return part, part.with_name(part.name + ".json")


def drop_part(path: Path) -> None:
    """Remove what an unfinished download of ``path`` left."""
    for leftover in part_of(path):
        leftover.unlink(missing_ok=True)


def size_of(place: str) -> int | None:
    """Return a place's size in bytes, or None where it does not say."""
    try:
        if not is_url(place):
            return Path(place).stat().st_size
        if place.partition("://")[0].lower() == "ftp":  # asking would start the transfer
            return None
        with OPENER.open(_request(place, method="HEAD"), timeout=min(TIMEOUT, 10)) as answer:
            return _length(answer.headers.get("Content-Length"))
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException, ValueError, PlaceError):
        pass
    return None


def read_text(place: str, *, limit: int = 64 << 20) -> str | None:
    """Read a small text, or return None where the place has none.

    Raises:
        PlaceError: it may be there, and could not be read.
    """

    def read() -> str | None:
        try:
            opened = _open(place, 0, None)
            with opened.stream as stream:
                content = stream.read(limit)
        except FileNotFoundError:
            return None
        except urllib.error.HTTPError as error:
            if error.code not in (403, 404, 410):  # stores of objects answer 403 where they do not list
                raise
            error.close()
            return None
        except urllib.error.URLError as error:
            if isinstance(error.reason, FileNotFoundError):
                return None
            raise
        if opened.total is not None and len(content) != opened.total:
            raise OSError(f"truncated: {len(content)} of {opened.total} bytes came")
        return content.decode("utf-8-sig")

    return _patiently(read, place, label=without_secrets(place), stop=threading.Event(), size=lambda: 0)


def receive(place: str, path: Path, *, label: str, meter: Meter, checked: bool) -> bool:
    """Bring a place's bytes to the part file of ``path`` and say whether some are of an earlier attempt.

    Failures that may pass are tried again, and go on where they stopped if the server can.

    Args:
        place: a path or an address.
        path: the file that the part is to become.
        label: the file's name in messages.
        meter: where progress is shown.
        checked: whether a checksum will tell that pieces do not belong together.

    Raises:
        PlaceError: the place did not give all of it. What came stays in the part.
        StorageError: the bytes could not be written. What came stays in the part.
    """
    part, _ = part_of(path)
    return _patiently(
        lambda: _receive_once(place, path, label=label, meter=meter, checked=checked),
        place,
        label=label,
        stop=meter.stop,
        size=lambda: part.stat().st_size if part.exists() else 0,
    )


def _patiently(action: Callable[[], T], place: str, *, label: str, stop: threading.Event, size: Callable[[], int]) -> T:
    """Do it, again after failures that may pass; ``size`` says how many bytes have come."""
    attempt, best = 0, size()
    while True:
        attempt += 1
        try:
            return action()
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLErrors and timeouts are OSErrors
            reason, passing = _judge(error, place)
            asked = _retry_after(error)
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if not passing:
                raise PlaceError(reason) from error
            if size() >= best + STRIDE:
                attempt, best = 1, size()
            if attempt >= ATTEMPTS:
                raise PlaceError(f"{reason} ({ATTEMPTS} attempts)") from error
        wait = max(WAIT * 2 ** (attempt - 1), asked)
        say(f"{label}: {reason}; trying {without_secrets(place)} again in {wait:.0f} s")
        if stop.wait(wait):
            raise StoppedError


def _judge(error: Exception, place: str) -> tuple[str, bool]:
    """Say what went wrong, without secrets, and whether it may pass."""
    if isinstance(error, urllib.error.HTTPError):
        return without_secrets(f"HTTP {error.code} {error.reason}"), error.code >= 500 or error.code in (408, 425, 429)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, OSError) and cause.errno in FULL:
        raise StorageError(os.strerror(cause.errno or 0)) from error
    if isinstance(cause, FileNotFoundError):
        return "no such file", False
    if isinstance(cause, UnicodeDecodeError):
        return "is no text", False
    if isinstance(cause, ValueError | http.client.InvalidURL) and not isinstance(cause, OSError):
        return "is no valid address, or gives no valid answer", False  # their texts quote passwords
    if isinstance(cause, TimeoutError) and not cause.errno:
        return f"no byte for {TIMEOUT:g} s", True
    if isinstance(cause, http.client.IncompleteRead):
        return "truncated: the line dropped", True
    text = without_secrets(str(cause) or type(cause).__name__)
    return text, is_url(place) and not isinstance(cause, ssl.SSLCertVerificationError)


def _retry_after(error: Exception) -> float:
    """Return how many seconds the server asks us to wait, within reason."""
    asked = error.headers.get("Retry-After") if isinstance(error, urllib.error.HTTPError) and error.headers else None
    if not asked:
        return 0.0
    try:
        seconds = (
            float(asked) if asked.isdigit() else email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        )
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), WAIT_CAP)


def _receive_once(place: str, path: Path, *, label: str, meter: Meter, checked: bool) -> bool:
    part, notes = part_of(path)
    have, known = _resumable(place, part, notes, checked=checked)
    if have and have == known.get("length"):
        return True  # an earlier process ended between the last byte and the check
    opened = _open(place, have, known)
    try:
        out = part.open("r+b" if opened.start else "wb")
        if not opened.start:
            # After the part was emptied and before it is filled, so that no kill leaves it with another's notes.
            known = {"url": without_secrets(place), "validator": opened.validator, "length": opened.total}
        elif known["url"] != without_secrets(place):
            known = {"url": without_secrets(place), "validator": None, "length": opened.total}  # pieces of two places
        notes.write_text(json.dumps(known) + "\n", encoding="utf-8")
    except OSError as error:
        opened.stream.close()
        raise StorageError(error.strerror or str(error)) from error
    have, total = opened.start, opened.total
    onwards = f" from byte {have}" if have else ""
    say(f"{label}: from {without_secrets(place)}{onwards}" + (f", {size_text(total)}" if total is not None else ""))
    meter.at(label, have, total)
    with opened.stream as incoming, out:
        out.seek(have)
        # read1 gives what has come, so that a dropped line costs no whole block.
        while total is None or have < total:
            block = incoming.read1(BLOCK if total is None else min(BLOCK, total - have))
            if not block:
                break
            out.write(block)
            out.flush()
            have += len(block)
            meter.at(label, have, total, moved=len(block))
    if total is not None and have != total:
        raise OSError(f"truncated: {have} of {total} bytes came")
    return opened.start > 0


def _resumable(place: str, part: Path, notes: Path, *, checked: bool) -> tuple[int, dict[str, Any]]:
    """Return how many bytes of a part may be kept, and what is known of them."""
    try:
        known = json.loads(notes.read_text(encoding="utf-8"))
        have = part.stat().st_size
        same = known["url"] == without_secrets(place)
        validator = known["validator"]
        length = known["length"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0, {}
    if not isinstance(validator, str | None) or not isinstance(length, int | None):
        return 0, {}
    if (same and validator) or checked:
        return have, {"url": known["url"], "validator": validator if same else None, "length": length}
    return 0, {}


@dataclass
class _Opened:
    """Bytes about to come."""

    stream: Any
    start: int  # the first byte that comes
    total: int | None  # bytes of the whole file
    validator: str | None  # what changes when the file does


def _open(place: str, have: int, known: dict[str, Any] | None) -> _Opened:
    """Open a place after its first ``have`` bytes if it still is what is known of it, else at its beginning."""
    known = known or {}
    validator, length = known.get("validator"), known.get("length")
    if not is_url(place):
        file = Path(place).open("rb")  # noqa: SIM115 - closed by the caller
        facts = os.fstat(file.fileno())
        stamp: str | None = f"{facts.st_mtime_ns}"
        fits = validator in (None, stamp) and length in (None, facts.st_size) and have <= facts.st_size
        return _Opened(file, file.seek(have if fits else 0), facts.st_size, stamp)

    request = _request(place)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator:
            request.add_header("If-Range", validator)
    try:
        answer = OPENER.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        return _open(place, 0, None)  # it has become shorter than what we have
    stamp = _validator(answer.headers)
    if getattr(answer, "status", None) != 206:
        return _Opened(answer, 0, _length(answer.headers.get("Content-Length")), stamp)
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    rest = _length(answer.headers.get("Content-Length"))
    total = int(match[2]) if match and match[2] != "*" else None if rest is None else have + rest
    fits = match is not None and int(match[1]) == have
    # Servers that know ranges need not know If-Range.
    if not have or not fits or (validator and stamp and stamp != validator) or (length and total and length != total):
        answer.close()
        if not have:
            raise PlaceError("answers with a part where the whole was asked for")
        return _open(place, 0, None)
    return _Opened(answer, have, total, stamp)


def _validator(headers: Any) -> str | None:
    """Return a file's strong ETag, else its date; a weak ETag says nothing about bytes."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _length(text: str | None) -> int | None:
    length = int(text) if text else None
    if length is not None and length < 0:
        raise ValueError("negative length")
    return length


def _request(place: str, *, method: str = "GET") -> urllib.request.Request:
    """Return a request whose user, if the address names one, goes into a header that no redirect carries on."""
    parts = urllib.parse.urlsplit(place)
    if parts.scheme not in SCHEMES:
        raise PlaceError(f"is of no kind that is fetched ({', '.join(SCHEMES)}, or a folder)")
    user, _, host = parts.netloc.rpartition("@")
    if not user or parts.scheme not in ("http", "https"):
        return _identified(place, method)
    request = _identified(parts._replace(netloc=host).geturl(), method)
    token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
    request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _identified(address: str, method: str) -> urllib.request.Request:
    headers = {"User-Agent": "jointdiff"}
    return urllib.request.Request(address, headers=headers, method=method)  # noqa: S310 - of a scheme in SCHEMES


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https alone: a server must not make us read this machine's files."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the next request, of the same method."""
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            fp.close()
            raise PlaceError(f"redirects to {scheme}:, which is refused")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and req.get_method() == "HEAD":
            following.method = "HEAD"
        return following


OPENER = urllib.request.build_opener(_Redirects)
