"""A headless Chromium, driven by plain WebDriver requests."""

import base64
import contextlib
import pathlib
import shutil
import socket
import subprocess
import time
from typing import Any

import httpx2

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-component-update",
    "--disable-extensions",
]


def find_browser() -> str | None:
    """The browser's path, if it and its driver are installed."""
    paths = [path for name in BROWSERS if (path := shutil.which(name))]
    return paths[0] if paths and shutil.which("chromedriver") else None


class Browser:
    """One window. Every method waits for what it needs."""

    def __init__(self, driver: str, profile: pathlib.Path, size: tuple[int, int] = (1280, 1000)) -> None:
        self.http = httpx2.Client(timeout=120)
        arguments = [*_ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        options: dict[str, Any] = {"binary": find_browser(), "args": arguments}
        if size[0] < 500:  # the narrowest window that Chromium opens
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 1}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        answer = self.http.post(f"{driver}/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
        assert "sessionId" in answer, answer
        self.url = f"{driver}/session/{answer['sessionId']}"

    def call(self, method: str, path: str, **content: Any) -> Any:
        answer = self.http.request(method, f"{self.url}{path}", json=content if method == "POST" else None)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        self.call("POST", "/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", script=script, args=list(arguments))

    def wait(self, script: str, seconds: float = 120) -> Any:
        """Wait until a script returns something true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.2)
        raise AssertionError(f"never: {script}; the page: {self.run('return document.body.innerText')[:1500]}")

    def click(self, selector: str) -> None:
        self.wait(f"return !!document.querySelector({selector!r}) && !document.querySelector({selector!r}).disabled")
        self.run("const e = document.querySelector(arguments[0]); e.closest('details')?.setAttribute('open', ''); "
                 "e.scrollIntoView({block: 'center'})", selector)  # fmt: skip
        self.call("POST", f"/element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        found = self._find(selector)
        self.call("POST", f"/element/{found}/clear")
        self.call("POST", f"/element/{found}/value", text=text)

    def _find(self, selector: str) -> str:
        return self.call("POST", "/element", using="css selector", value=selector)[_ELEMENT]

    def drag(self, selector: str, points: list[tuple[int, int]]) -> None:
        """Press the pointer, move it over points from the element's centre, and release it."""
        origin = {_ELEMENT: self._find(selector)}
        moves = [{"type": "pointerMove", "duration": 50, "origin": origin, "x": x, "y": y} for x, y in points]
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self.call("POST", "/actions", actions=[pointer])

    def faults(self) -> list[str]:
        """Errors of the console, such as what the Content-Security-Policy refused."""
        entries = self.call("POST", "/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def save_screenshot(self, path: pathlib.Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def close(self) -> None:
        self.call("DELETE", "")
        self.http.close()


@contextlib.contextmanager
def running_driver():
    """Chromium's driver; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"http://127.0.0.1:{port}/status").json()["value"]["ready"]:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        driver.terminate()
        driver.wait()
