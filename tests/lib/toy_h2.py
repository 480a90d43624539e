"""A small HTTP/2 server on a plain socket, for tests of clients: each request is answered by what the test says."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

type Answer = Callable[[int, "Stream"], Awaitable[None]]


class Stream:
    """One request, and what can be done to it."""

    def __init__(self, server: "Connection", number: int) -> None:
        self._server, self.number = server, number

    def answer(self, status: int = 200, body: bytes = b"{}") -> None:
        """Answer it."""
        self._server.h2.send_headers(self.number, [(":status", str(status)), ("content-length", str(len(body)))])
        self._server.h2.send_data(self.number, body, end_stream=True)

    def refuse(self) -> None:
        """Say that nobody has looked at it (REFUSED_STREAM)."""
        self._server.h2.reset_stream(self.number, h2.errors.ErrorCodes.REFUSED_STREAM)

    def reset(self) -> None:
        """Break it off, whatever was done with it."""
        self._server.h2.reset_stream(self.number, h2.errors.ErrorCodes.INTERNAL_ERROR)

    def go_away(self, seen: int) -> None:
        """Close the connection in an orderly way: requests up to the number `seen` were looked at, later ones not."""
        self._server.h2.close_connection(last_stream_id=seen)
        self._server.ends = True


class Connection:
    """One connection of a client."""

    def __init__(self, answer: Answer, count: Callable[[], int]) -> None:
        self._answer, self._count = answer, count
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.ends = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve it until one side closes it."""
        self.h2.initiate_connection()
        writer.write(self.h2.data_to_send())
        with suppress(ConnectionError, h2.exceptions.ProtocolError):
            while not self.ends and (data := await reader.read(65536)):
                for event in self.h2.receive_data(data):
                    if isinstance(event, h2.events.StreamEnded):
                        await self._answer(self._count(), Stream(self, event.stream_id))
                writer.write(self.h2.data_to_send())
                await writer.drain()
        writer.close()
