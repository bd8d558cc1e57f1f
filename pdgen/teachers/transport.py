"""Single requests to a chat endpoint, by the ``openai`` client (the extra ``endpoint``).

No error message contains the key. Redirects are not followed, so that the key is sent only to the host in the settings.
"""

import email.utils
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from pdgen.teachers.chat import Completion, decode_reply
from pdgen.teachers.protocols import TeacherError, TransientError

for _name in ("openai", "httpcore2"):  # with DEBUG they log headers, which may repeat the key
    logging.getLogger(_name).setLevel(logging.INFO)
LONGEST_MESSAGE = 300
TRANSIENT = (408, 409, 425, 429)


class ChatClient:
    """A client of one chat endpoint. Thread-safe. It respects the proxies of the environment.

    Args:
      url: base URL, to which "/chat/completions" is appended.
      timeout: seconds for a request, from connecting to the last byte.

    Raises:
      TeacherError: the URL, or a proxy of the environment, cannot be used.
    """

    def __init__(self, url: str, timeout: float):
        self.url = url.rstrip("/") + "/chat/completions"
        self._timeout = timeout
        try:
            self._client = openai.OpenAI(
                base_url=url,
                api_key="each request has its own",
                timeout=timeout,
                max_retries=0,  # its waits are fixed, uncounted, and cannot be cancelled; see Endpoint
                http_client=openai.DefaultHttpxClient(follow_redirects=False),
            )
        except (httpx2.InvalidURL, ValueError, ImportError) as fault:  # a SOCKS proxy needs another package
            raise TeacherError(f"{url}: {fault}; check it and HTTP_PROXY, HTTPS_PROXY and ALL_PROXY") from None

    def send(self, body: Mapping[str, Any], key: str) -> Completion:
        """Send ``body`` as JSON with the bearer token ``key`` ("": none), and return the reply without the key.

        Raises:
          TransientError: timeout, no or a cut connection, a malformed reply, or status 408, 409, 425, 429 or 5xx.
          TeacherError: the status is another one.
        """
        account = dict.fromkeys(("OpenAI-Organization", "OpenAI-Project"), openai.omit)  # the environment's
        headers = {**account, "Authorization": f"Bearer {key}" if key else openai.omit}
        try:
            text = _redact(self._receive(body, headers), key)
        except openai.APIStatusError as fault:
            raise self._make_error(fault, key) from None
        except (openai.APIConnectionError, httpx2.RequestError) as fault:
            raise TransientError(_name_reason(fault.__cause__ or fault)) from None
        try:
            return decode_reply(text)
        except ValueError:
            raise TransientError("garbage", _to_line(text)[:60]) from None

    def _receive(self, body: Mapping[str, Any], headers: Mapping[str, str | openai.Omit]) -> str:
        # The client limits each read. The deadline limits all of them, for a server that sends slowly.
        deadline = time.monotonic() + self._timeout
        create = self._client.chat.completions.with_streaming_response.create
        parts = []
        # The rest of the body, which may have parameters that the client does not know, is in extra_body.
        with create(model=body["model"], messages=body["messages"], extra_body=body, extra_headers=headers) as response:
            for part in response.iter_text():
                parts.append(part)
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("")
        return "".join(parts)

    def _make_error(self, fault: openai.APIStatusError, key: str) -> Exception:
        message = fault.body.get("message") if isinstance(fault.body, dict) else fault.body
        text = message if isinstance(message, str) else fault.response.text
        line = _to_line(_redact(text, key))[:LONGEST_MESSAGE] or "(no message)"
        status, headers = fault.status_code, fault.response.headers
        if status in TRANSIENT or status >= 500:
            return TransientError(f"HTTP {status}", line, _parse_retry_after(headers.get("Retry-After", "")))
        if 300 <= status < 400:
            line = f"redirected to {_to_line(_redact(headers.get('Location', 'nowhere'), key))}; name that in url"
        return TeacherError(f"{self.url}: HTTP {status}: {line}")


def _name_reason(fault: BaseException) -> str:
    if isinstance(fault, httpx2.TimeoutException):
        return "timeout"
    if isinstance(fault, httpx2.ConnectError | httpx2.ProxyError):
        return f"no connection ({fault})"
    return "cut connection"


def _parse_retry_after(value: str) -> float:
    # RFC 9110: seconds, or a date.
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _to_line(text: str) -> str:
    return " ".join(text.split())


def _redact(text: str, key: str) -> str:
    if not key:
        return text
    # JSON may escape a slash with a backslash, and nested JSON with several.
    return re.sub(r"\\*/".join(map(re.escape, key.split("/"))), "[key]", text)
