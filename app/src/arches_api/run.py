"""Serves the application: Hypercorn on one listening socket, one process, one event loop.

Never Hypercorn's own workers: their master ends busy ones without draining. Several processes share the socket that
systemd holds, so that a restart refuses no connection. Leaving goes in steps:

1. lame duck: not ready, every answer says `Connection: close`, so that keep-alive clients leave by themselves;
2. stop accepting, while what was accepted a moment ago still gets in;
3. drain: Hypercorn finishes what is running. The unit's TimeoutStopSec is the only limit.
"""

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress

import structlog
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config

from .app import create_app
from .lib.logs import configure_logging
from .lib.services import EXTENSION, Services
from .lib.settings import Settings
from .preflight import preflight

BACKLOG = 1024  # as in api.socket: Hypercorn calls listen() again and must not make it smaller
KEEP_ALIVE = 75  # seconds: longer than any client keeps an idle connection, so that the client closes first
LAST_ACCEPTED = 1.0  # seconds for accepted connections to send their request; 0.3 s cut one of 4,831 on a busy host
SYSTEMD_FIRST_FD = 3

log = structlog.get_logger()


def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT, then drains. Raises PreflightFailed, or OSError when an address is taken."""
    configure_logging(settings.log_level)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    if settings.preflight_requests:
        await preflight(settings)
    app = create_app(settings)
    services: Services = app.extensions[EXTENSION]
    if settings.metrics_enabled:
        services.metrics.serve(settings.metrics_host, settings.metrics_port)
    listening = listening_socket(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)

    async def until_drained() -> None:
        _notify("READY=1")
        log.info("serving", address=f"{settings.host}:{settings.port}", release=settings.release)
        await stop.wait()
        _notify("STOPPING=1")
        log.info("leaving", lame_duck=settings.lame_duck)
        services.drain.start()
        await asyncio.sleep(settings.lame_duck)
        loop.remove_reader(listening.fileno())
        await asyncio.sleep(LAST_ACCEPTED)

    await hypercorn_serve(app, _hypercorn_config(listening.fileno()), shutdown_trigger=until_drained)
    log.info("left")


def listening_socket(settings: Settings) -> socket.socket:
    """The socket that systemd passed, or one of our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=SYSTEMD_FIRST_FD)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    own = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    own.set_inheritable(False)
    return own


def _hypercorn_config(listening_fd: int) -> Config:
    config = Config()
    config.bind = [f"fd://{listening_fd}"]
    config.backlog = BACKLOG
    config.keep_alive_timeout = KEEP_ALIVE
    config.graceful_timeout = 3600  # not a limit; see above
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn")
    config.include_server_header = False
    return config


def _notify(state: str) -> None:
    """Tells systemd (Type=notify); nothing happens when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(state.encode())
