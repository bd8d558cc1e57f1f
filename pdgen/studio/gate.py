"""What every request passes: the host's name, the token, the origin, the rate; and the headers of every answer."""

import collections
import hmac
import http.cookies
import time
import urllib.parse

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pdgen.studio.errors import StudioError

# Nothing from elsewhere, no inline script or style, no frame around the page. Canvases give their pictures as blobs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
RATE = 20.0  # changes a second that one address may ask for in the long run
BURST = 100  # and at once
COOKIE = "studio_token"
_ADDRESSES = 4_096


class Gate:
    """Refuses requests before they reach the application.

    Args:
      hosts: names of this server, without ports: another name is another site that resolves to this address.
      token: what requests must show, as ``Authorization: Bearer``, as a cookie, or once as the query's ``token``, which
        sets the cookie; None: nothing.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], token: str | None) -> None:
        self._app, self._hosts, self._token = app, hosts, token
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with one line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            cookie = self._check(scope)
        except StudioError as fault:
            await _answer(send_with_headers, fault.status, {"error": str(fault)})
            return
        if cookie:
            headers = {"location": scope["path"], "set-cookie": cookie}
            await _answer(send_with_headers, 303, {}, headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> str:
        """Return the cookie to set, if any. Raises StudioError for a request that must not pass."""
        headers = Headers(scope=scope)
        host = _strip_port(headers.get("host", ""))
        if "*" not in self._hosts and host not in self._hosts:
            raise StudioError(f"host {host[:60]!r} is not this server's name; start it with --host of that name", 421)
        origin = headers.get("origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc != headers.get("host"):
            raise StudioError("the request comes from a page of another site; use the studio's own page", 403)
        if scope["method"] not in ("GET", "HEAD"):
            self._charge((scope.get("client") or ("", 0))[0])
        return self._check_token(scope, headers)

    def _check_token(self, scope: Scope, headers: Headers) -> str:
        if self._token is None:
            return ""
        query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"), errors="replace")
        if _is_equal(query.get("token", [""])[0], self._token) and scope["method"] == "GET":
            return f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        shown = [headers.get("authorization", "").removeprefix("Bearer "), _read_cookie(headers.get("cookie", ""))]
        if not any(_is_equal(one, self._token) for one in shown):
            raise StudioError("the token is missing or wrong; open the address that the server printed", 401)
        return ""

    def _charge(self, address: str) -> None:
        """Take one of an address's allowed requests, which come back at RATE. Raises StudioError (429)."""
        now = time.monotonic()
        left, then = self._buckets.pop(address, (float(BURST), now))
        left = min(BURST, left + RATE * (now - then))
        self._buckets[address] = (max(0.0, left - 1), now)
        while len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        if left < 1:
            raise StudioError("too many requests; wait a second", 429)


def _strip_port(host: str) -> str:
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_equal(shown: str, token: str) -> bool:
    return hmac.compare_digest(shown.encode(), token.encode())


def _read_cookie(header: str) -> str:
    try:
        cookies = http.cookies.SimpleCookie(header)
    except http.cookies.CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


async def _answer(send: Send, status: int, content: dict, headers: dict[str, str] | None = None) -> None:
    body = msgspec.json.encode(content)
    pairs = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
