"""A chat endpoint on localhost that answers by a script and can misbehave in all the ways of a server."""

import collections
import http.server
import json
import threading
import time

import diskcache

# No test needs an answer after a power failure, and waiting for the disk would take most of the time.
diskcache.DEFAULT_SETTINGS["sqlite_synchronous"] = 0


def completion(content: str | None, finish: str = "stop", refusal: str | None = None, usage: bool = True) -> bytes:
    """Return the body of a chat completion of 100 input and 10 output tokens."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    reply = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if usage:
        reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps(reply).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """A handler that performs the next act of the script, or the server's usual one."""

    def do_POST(self):
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.headers.append(self.headers)  # names in any case
            server.paths.append(self.path)
            act = server.script.popleft() if server.script else server.usual
            server.active += 1
            self.counted = True
            server.peak = max(server.peak, server.active)
        try:
            act(self, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up
        finally:
            self.leave()
        self.close_connection = True

    def leave(self):
        """Count as inactive, before the answer is sent and the client may send its next request."""
        with self.server.lock:
            self.server.active -= self.counted
            self.counted = False

    def log_message(self, *_):
        """Says nothing."""

    def send(self, data: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        """Send a response; ``length`` may promise more than there is."""
        self.leave()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)


class ChatServer(http.server.ThreadingHTTPServer):
    """A server. ``script``: acts (handler, body) for the next requests; ``usual``: the act for all others."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, usual):
        super().__init__(("127.0.0.1", 0), Handler)
        self.usual = usual
        self.script = collections.deque()
        self.bodies, self.headers, self.paths = [], [], []
        self.active = self.peak = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
        """Says nothing."""


def says(content: str | None, delay: float = 0.0, **how):
    """Make an act: a completion after ``delay`` seconds."""

    def act(handler, _):
        time.sleep(delay)
        handler.send(completion(content, **how))

    return act


def refuses(status: int, message: str = "no", **headers: str):
    """Make an act: an error status with a message in OpenAI's words."""
    return lambda handler, _: handler.send(json.dumps({"error": {"message": message}}).encode(), status, **headers)


def sends(data: bytes, length: int | None = None):
    """Make an act: these bytes, with a promise of ``length``."""
    return lambda handler, _: handler.send(data, length=length)


def drips(data: bytes, pause: float):
    """Make an act: one byte after the other."""

    def act(handler, _):
        handler.send(b"", length=len(data))
        for byte in data:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(pause)

    return act


def hangs_up(handler, _):
    """Perform an act: close the connection without an answer."""
    handler.connection.close()
