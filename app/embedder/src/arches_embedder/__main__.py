"""Run the service: load and prove the model, listen, tell systemd, drain on SIGTERM."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time

from hypercorn.asyncio import serve
from hypercorn.config import Config

from arches_embedder.model import Model
from arches_embedder.service import create_app
from arches_embedder.settings import Settings, SettingsError, load

GRACEFUL_SECONDS = 10  # what was admitted is finished; the unit's TimeoutStopSec is longer

log = logging.getLogger("arches_embedder")


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; an exception becomes the field `exception`."""
        entry = {"level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        if request_id := getattr(record, "request_id", None):
            entry["request_id"] = request_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def main() -> int:
    """Serve until SIGTERM or SIGINT. Exit code 2 means: a setting is wrong, see the one line on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        settings = load()
        listener = _listen(settings)
    except SettingsError as error:
        print(f"arches-embedder: {error}", file=sys.stderr)
        return 2
    started = time.monotonic()
    model = Model(settings.model_dir)
    log.info(f"model loaded in {time.monotonic() - started:.2f} s, listening on {listener.getsockname()}")
    asyncio.run(_serve(settings, model, listener))
    return 0


async def _serve(settings: Settings, model: Model, listener: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def stopped() -> None:
        await stop.wait()

    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = logging.getLogger("hypercorn")
    config.keep_alive_timeout = 75
    config.graceful_timeout = GRACEFUL_SECONDS
    app = create_app(settings, model)
    app.before_serving(lambda: _notify("READY=1"))
    await serve(app, config, shutdown_trigger=stopped)
    log.info("stopped")


def _listen(settings: Settings) -> socket.socket:
    """The listening socket, taken before the model is loaded, so that a wrong port fails at once and in one line."""
    try:
        return socket.create_server((settings.host, settings.port), backlog=100)
    except OSError as error:
        address = f"EMBEDDER_HOST {settings.host} EMBEDDER_PORT {settings.port}"
        raise SettingsError(f"cannot listen on {address}: {error}") from None


def _notify(state: str) -> None:
    """Tell systemd, if it started us (Type=notify)."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


if __name__ == "__main__":
    sys.exit(main())
