"""A TCP forwarder whose far side can be taken away: refused, silent, or cut. Runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Mode(Enum):
    """What happens to connections."""

    PASS = "pass"
    REFUSE = "refuse"  # nobody listens
    SILENT = "silent"  # accepted, never answered


@dataclass(frozen=True, slots=True)
class Target:
    """Where to forward: a TCP address, or a unix socket's path as host with port 0."""

    host: str
    port: int


class Forwarder:
    """Forwards 127.0.0.1:<port> to a target."""

    def __init__(self, target: Target) -> None:
        self.port = 0
        self._target = target
        self._mode = Mode.PASS
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen)

    def set(self, mode: Mode) -> None:
        """Changes the mode; existing connections are cut."""
        self._call(lambda: self._set(mode))

    def cut(self) -> None:
        """Cuts existing connections; new ones pass."""
        self._call(self._cut)

    def close(self) -> None:
        """Ends the thread."""
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _call(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()
        if mode is not Mode.REFUSE:
            await self._listen()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._mode is Mode.SILENT:
                await reader.read()
                return
            far_reader, far_writer = await self._open()
            self._writers.add(far_writer)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(reader, far_writer))
                    group.create_task(_pump(far_reader, writer))
            finally:
                self._writers.discard(far_writer)
                far_writer.transport.abort()
        except* OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.port:
            return await asyncio.open_connection(self._target.host, self._target.port)
        return await asyncio.open_unix_connection(self._target.host)


@dataclass(frozen=True, slots=True)
class Paths:
    """How servers under test reach the services: through forwarders that a test may cut."""

    database: Forwarder
    redis: Forwarder
    environment: dict[str, str]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
