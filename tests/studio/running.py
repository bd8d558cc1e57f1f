"""A studio of a sampler behind a real server, in threads, and a client of it."""

import contextlib
import dataclasses
import threading
import time

import httpx2
import uvicorn

from pdgen.files import log_stderr
from pdgen.studio.corrections import Corrections
from pdgen.studio.server import make_app
from pdgen.studio.store import open_store
from pdgen.studio.studio import Studio
from pdgen.studio.worker import Worker, choose_capacity
from tests.sample.conftest import SETTINGS

STUDIO = dataclasses.replace(SETTINGS, batch_size=1)
SLOTS = 3


class Running:
    """A running studio and a client of it."""

    def __init__(self, studio, corrections, port):
        self.studio, self.corrections, self.address = studio, corrections, f"http://127.0.0.1:{port}"
        self.http = httpx2.Client(base_url=self.address, timeout=60)

    def create(self, prompt="a red circle", **request):
        answer = self.http.post("/api/trajectories", json={"prompt": prompt, "seed": 22, **request})
        assert answer.status_code == 201, answer.text
        return [one["id"] for one in answer.json()["trajectories"]]

    def branch(self, name, **request):
        answer = self.http.post(f"/api/trajectories/{name}/branch", json=request)
        assert answer.status_code == 201, answer.text
        return [one["id"] for one in answer.json()["trajectories"]]

    def view(self, name):
        return self.http.get(f"/api/trajectories/{name}").json()

    def wait(self, name, *states):
        """Wait until the trajectory is in one of the states, and return it."""
        for _ in range(4000):
            view = self.view(name)
            if view["summary"]["progress"] in (states or ("idle", "done")):
                return view
            time.sleep(0.1)
        raise AssertionError(view)


@contextlib.contextmanager
def running_studio(sampler, folder, token=None, hosts=("127.0.0.1",), start=True):
    with open_store(folder, sampler.model, STUDIO) as store:
        studio = Studio(sampler, store, STUDIO, choose_capacity(sampler.model, STUDIO, SLOTS), log_stderr)
        corrections = Corrections(folder, log_stderr)
        worker = Worker(studio, SLOTS, log_stderr)
        app = make_app(studio, corrections, hosts, token)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.02)
            if start:
                worker.start()
            yield Running(studio, corrections, server.servers[0].sockets[0].getsockname()[1])
        finally:
            studio.close()
            if start:
                worker.close()
            server.should_exit = True
            thread.join()
