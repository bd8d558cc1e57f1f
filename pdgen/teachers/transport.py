"""JSON requests over HTTP with deadlines and retries. No error message contains the key.

The module uses only the standard library, so that a build machine needs no extra package. It respects the proxies of
the environment. Redirects are not followed, so that the key is sent only to the host in the settings.
"""

import email.utils
import http.client
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from pdgen.json_text import load_json
from pdgen.teachers.protocols import TeacherError

CHUNK = 1 << 16
LONGEST_MESSAGE = 300
_MAX_SECONDS = 10**7  # the operating system's clocks end at some 10**9
TRANSIENT = (408, 409, 425, 429)
T = TypeVar("T")


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Timeouts and retries of a request. All times are in seconds.

    Attributes:
      timeout: limit of one attempt, from connecting to the last byte.
      attempts: maximum number of attempts.
      backoff: wait after the first failed attempt. It doubles with each further attempt, and half of it is random.
      longest_wait: maximum wait. The request fails if the server's ``Retry-After`` is longer.

    Raises:
      TeacherError: a value is out of range.
    """

    timeout: float = 120.0
    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 120.0

    def __post_init__(self) -> None:
        times = (self.timeout, self.backoff, self.longest_wait)
        if self.attempts < 1 or self.timeout <= 0 or not all(0 <= time <= _MAX_SECONDS for time in times):
            raise TeacherError(
                f"{self}: at least one attempt, a timeout above 0 and no wait that is negative or longer than "
                f"{_MAX_SECONDS:,} s are needed"
            )


class _TransientError(Exception):
    # A failure that may not repeat: the reason for counting, and the wait that the server asks for.
    def __init__(self, reason: str, message: str = "", wait: float = 0.0):
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def post(
    url: str,
    body: bytes,
    key: str,
    decode: Callable[[bytes], T],
    patience: RetryPolicy,
    cancelled: threading.Event,
    count: Callable[[str], None],
) -> T:
    """Post ``body`` (JSON) and return the decoded answer.

    The request is repeated after timeouts, cut connections, answers that ``decode`` rejects and the statuses 408, 409,
    425, 429 and 5xx, after max(backoff, ``Retry-After``). The key is removed from everything that comes back.

    Args:
      url, body: the request.
      key: bearer token; "" for a server without keys.
      decode: decodes the answer; raises ValueError if it is malformed.
      patience: timeouts and retries.
      cancelled: when set, the wait between attempts ends.
      count: called with the reason of each failed attempt ("timeout", "HTTP 429", "cut connection", ...).

    Raises:
      TeacherError: the status is another one, the wait is too long, all attempts failed, or the request was cancelled.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            data = _send_once(url, body, key, patience.timeout)
            try:
                return decode(data)
            except ValueError:
                raise _TransientError("garbage", _to_line(data)[:60]) from None
        except _TransientError as fault:
            count(fault.reason)
            if attempt == patience.attempts:
                raise TeacherError(f"{url}: no answer in {attempt} attempts; the last: {fault}") from None
            if fault.wait > patience.longest_wait:
                raise TeacherError(
                    f"{url}: {fault}: asks to wait {fault.wait:.0f} s, longest_wait is {patience.longest_wait:.0f} s"
                ) from None
            doubled = min(patience.backoff * 2 ** (attempt - 1), patience.longest_wait)
            if cancelled.wait(max(fault.wait, doubled * random.uniform(0.5, 1.0))):
                raise TeacherError(f"{url}: cancelled while waiting after: {fault}") from None


def _send_once(url: str, body: bytes, key: str, timeout: float) -> bytes:
    headers = {"Content-Type": "application/json", "User-Agent": "pdgen"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    deadline = time.monotonic() + timeout
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as response:
            return _redact(_read(response, deadline), key)
    except urllib.error.HTTPError as fault:
        with fault:
            raise _make_error(url, fault, key) from None
    except (OSError, http.client.HTTPException) as fault:
        raise _TransientError(_name_reason(fault)) from None


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    # The socket's timeout limits a single read; the deadline limits a server that sends slowly.
    chunks = []
    while chunk := response.read1(CHUNK):
        chunks.append(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # read1 does not report a stream that ends early
        raise http.client.IncompleteRead(b"".join(chunks), response.length)
    return b"".join(chunks)


def _name_reason(fault: Exception) -> str:
    cause = getattr(fault, "reason", fault)  # URLError wraps errors while connecting
    if isinstance(cause, TimeoutError):
        return "timeout"
    if isinstance(cause, http.client.HTTPException | ConnectionResetError | BrokenPipeError):
        return "cut connection"
    return f"no connection ({cause})"


def _make_error(url: str, fault: urllib.error.HTTPError, key: str) -> Exception:
    try:
        message = _read_server_message(_redact(fault.read(CHUNK), key))
    except (OSError, http.client.HTTPException):
        message = "(message cut)"
    if fault.code in TRANSIENT or fault.code >= 500:
        return _TransientError(f"HTTP {fault.code}", message, _parse_retry_after(fault.headers.get("Retry-After", "")))
    if 300 <= fault.code < 400:
        target = _redact(fault.headers.get("Location", "nowhere").encode(), key)
        message = f"redirected to {_to_line(target)}; name that in url"
    return TeacherError(f"{url}: HTTP {fault.code}: {message}")


def _parse_retry_after(value: str) -> float:
    # RFC 9110: seconds, or a date.
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _read_server_message(data: bytes) -> str:
    # The message of {"error": {"message": ...}} or {"error": ...}, otherwise the whole body.
    try:
        error = load_json(data)["error"]
        data = str(error["message"] if isinstance(error, dict) else error).encode()
    except (ValueError, KeyError, TypeError):
        pass
    return _to_line(data)[:LONGEST_MESSAGE] or "(no message)"


def _to_line(data: bytes) -> str:
    return " ".join(data.decode("utf-8", "replace").split())


def _redact(data: bytes, key: str) -> bytes:
    if not key:
        return data
    # JSON may escape a slash with a backslash, and nested JSON with several.
    parts = (re.escape(part) for part in key.encode().split(b"/"))
    return re.sub(rb"\\*/".join(parts), b"[key]", data)
