"""The client of the rollout drills against a server that misbehaves: what is a failure, and what may be retried."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import pytest

from drills.rollout.client import Client, Request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BROKEN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\n{}"

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Client]:
    """A client of a toy server; `answer` is given the number of the request and where to write."""
    number = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                number += 1
                await answer(number, writer)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Client("127.0.0.1", "api.example.test", Path(), port, secure=False)
    try:
        yield client
    finally:
        await client.close()
        server.close()


def asked(method: str = "GET", key: str = "", kind: str = "keep-alive") -> Request:
    """A request that is due now."""
    return Request("read", kind, time.monotonic(), method, "/v1/me", key=key)


async def whole(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def dropped_once(number: int, writer: asyncio.StreamWriter) -> None:
    """The first request's connection is closed without an answer."""
    if number > 1:
        writer.write(OK)
    else:
        writer.close()


async def dropped(_: int, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def cut(_: int, writer: asyncio.StreamWriter) -> None:
    """The answer breaks off in its middle."""
    writer.write(OK[:-1])
    await writer.drain()
    writer.close()


async def refused(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(BROKEN)


@pytest.mark.parametrize(
    ("answer", "method", "key", "fails", "retries"),
    [
        (whole, "GET", "", False, 0),
        (dropped_once, "GET", "", False, 1),
        (dropped_once, "POST", "a-key", False, 1),
        # Nobody knows whether it was done: a client may not send it again.
        (dropped_once, "POST", "", True, 0),
        # Once more, and not for ever.
        (dropped, "GET", "", True, 1),
        (cut, "GET", "", True, 1),
        # An answer is an answer.
        (refused, "GET", "", True, 0),
        (refused, "POST", "a-key", True, 0),
    ],
)
async def test_what_fails_and_what_is_retried(answer: Answer, method: str, key: str, fails: bool, retries: int) -> None:
    async with serving(answer) as client:
        request = asked(method, key)
        await client.send(request)
    assert (request.failed, request.retries) == (fails, retries), request
    assert bool(request.error) == (fails or bool(retries))
    assert request.done >= request.sent >= request.due


@pytest.mark.parametrize(("kind", "connections"), [("keep-alive", 1), ("close", 3)])
async def test_each_kind_treats_connections_as_it_says(kind: str, connections: int) -> None:
    writers = set()

    async def note(_: int, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        writer.write(OK)

    async with serving(note) as client:
        for _ in range(3):
            await client.send(asked(kind=kind))
    assert len(writers) == connections


async def test_a_server_that_stalls_is_not_spared() -> None:
    """Requests keep coming, and the time of each counts from the moment that was meant."""

    async def stalls(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 5:
            await asyncio.sleep(0.5)
        writer.write(OK)

    record, stop = StringIO(), asyncio.Event()
    async with serving(stalls) as client:
        client.make = lambda operation, due, kind, number: Request("read", "keep-alive", due, "GET", "/v1/me")  # type: ignore[method-assign]
        asyncio.get_running_loop().call_later(1.0, stop.set)
        await client.run(100, record, stop)
    lines = [json.loads(line) for line in record.getvalue().splitlines()]
    assert len(lines) == pytest.approx(100, abs=15)
    latencies = sorted(line["done"] - line["due"] for line in lines)
    assert latencies[-1] >= 0.5 and latencies[len(latencies) // 2] < 0.1
    due = sorted(line["due"] for line in lines)
    assert all(after - before == pytest.approx(0.01, abs=1e-6) for before, after in itertools.pairwise(due))
