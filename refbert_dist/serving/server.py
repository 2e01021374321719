"""The server's process: its socket, its threads, and how it ends."""

from __future__ import annotations

import ipaddress
import logging
import resource
import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn

from refbert_dist.errors import UserError
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.serving.app import Limits, Service

SHUTDOWN_S = 30
"""For requests that are under way when the server is told to end."""
BACKLOG = 2048


def serve(pipeline: RefBertPipeline, host: str, port: int, token: str | None, limits: Limits) -> None:
    """Serve until SIGTERM or SIGINT; requests that are under way are answered first.

    Raises :class:`UserError` when the address cannot be used, or is open to others and there is no token.
    """
    check_address(host, token)
    # Every connection is an open file.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listening = _bound(host, port)
    pipeline.warm_up()
    service = Service(pipeline, limits, token)
    server = uvicorn.Server(
        uvicorn.Config(service.app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S)
    )
    stopped = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        # Told twice, it does not wait for the requests.
        server.force_exit = stopped.is_set()
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # In a thread of its own uvicorn leaves signals to us, and so the exit code.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="uvicorn")
    thread.start()
    name, used = listening.getsockname()[:2]
    place = f"[{name}]" if ":" in name else name
    sys.stderr.write(f"serving {pipeline.folder} at http://{place}:{used} (POST /predict, GET /health, GET /metrics)\n")
    while thread.is_alive() and not stopped.wait(1.0):
        pass
    server.should_exit = True
    thread.join()
    service.batcher.close()
    sys.stderr.write("stopped\n")


def check_address(host: str, token: str | None) -> None:
    """Refuse to open a server to others without a token."""
    if token is None and not _is_loopback(host):
        raise UserError(
            f"--host is '{host}', which others can reach, but there is no token; write one into a file and give "
            "--token-file FILE, or use --host 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        logging.getLogger(__name__).debug("no socket", exc_info=error)
        raise UserError(f"cannot listen at {host}:{port} ({error.strerror}); give another --port or --host") from None
    listening.listen(BACKLOG)
    listening.set_inheritable(True)
    return listening
