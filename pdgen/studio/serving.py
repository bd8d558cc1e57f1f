"""Running the studio: its folder, its worker and its HTTP server, until a signal comes."""

import logging
import pathlib
import socket
from typing import Any

import uvicorn

from pdgen.files import log_stderr
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.studio.corrections import Corrections
from pdgen.studio.hosts import LOCAL, is_local
from pdgen.studio.server import make_app
from pdgen.studio.store import open_store
from pdgen.studio.studio import Studio
from pdgen.studio.worker import Worker, choose_capacity

_GRACE = 3  # seconds for answers in progress at the end


class _Server(uvicorn.Server):
    """A server that prints its address and tells the studio when it shuts down, so that streams of events end."""

    def __init__(self, config: uvicorn.Config, studio: Studio, token: str | None) -> None:
        super().__init__(config)
        self._studio, self._token = studio, token

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            place = f"[{host}]" if ":" in host else host
            query = f"?token={self._token}" if self._token else ""
            print(f"studio: http://{place}:{port}/{query}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._studio.close()
        await super().shutdown(sockets=sockets)


def serve(
    sampler: Sampler,
    settings: SampleSettings,
    folder: pathlib.Path,
    slots: int,
    address: tuple[str, int],
    token: str | None,
) -> None:
    """Serve until SIGINT or SIGTERM; finished stages are saved.

    Args:
      settings: the defaults; ``batch_size`` is set.
      slots: trajectories at a time.
      address: host and port; port 0 chooses one, which is printed.
      token: what clients must show; None: nothing.

    Raises:
      RunFolderError, SampleError: the folder is not this model's, or so many rows do not fit into the memory.
      OSError: the address is taken.
    """
    settings = sampler.resolve_batch_size(settings, 1)
    capacity = choose_capacity(sampler.model, settings, slots)
    listener = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    with listener, open_store(folder, sampler.model, settings) as store:
        studio = Studio(sampler, store, settings, capacity, log_stderr)
        hosts = LOCAL if is_local(address[0]) else ("*",)  # elsewhere the token protects from other sites' pages
        app: Any = make_app(studio, Corrections(folder, log_stderr), hosts, token)
        config = uvicorn.Config(
            app, log_level=logging.WARNING, server_header=False, timeout_graceful_shutdown=_GRACE, access_log=False
        )
        worker = Worker(studio, slots, log_stderr)
        worker.start()
        try:
            _Server(config, studio, token).run(sockets=[listener])
        finally:
            worker.close()
