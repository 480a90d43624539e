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

from drills.rollout.client import FOREIGN, PATIENCE_S, Client, Request

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


async def twice(_: int, writer: asyncio.StreamWriter) -> None:
    """Two answers to each request: the second one meets the next request."""
    writer.write(answer_about("first") + answer_about("first"))


def answer_about(word: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(word), word.encode())


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


@pytest.mark.parametrize(("answer", "reason"), [(dropped_once, "closed"), (dropped, "closed"), (cut, "cut")])
async def test_a_retry_says_why(answer: Answer, reason: str) -> None:
    async with serving(answer) as client:
        request = asked()
        await client.send(request)
    assert (request.retries, request.retried_for) == (1, reason) and request.error.startswith(reason), request


async def test_where_nobody_listens_a_request_fails() -> None:
    async with serving(whole) as client:
        pass
    client = Client("127.0.0.1", "api.example.test", Path(), client.port, secure=False)
    request = asked()
    await client.send(request)
    await client.close()
    assert request.failed and (request.retries, request.retried_for) == (1, "refused"), request


async def test_a_connection_that_was_closed_while_idle_costs_nothing() -> None:
    """A client sees that before it sends (RFC 9112, 9.5)."""
    closed = asyncio.Event()

    async def closes(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with serving(closes) as client:
        requests = [asked("POST") for _ in range(5)]
        for request in requests:
            await client.send(request)
            await closed.wait()
            closed.clear()
    assert not any(request.failed or request.retries for request in requests), requests


async def test_an_answer_to_another_request_is_none() -> None:
    async with serving(twice) as client:
        requests = [asked(), asked(), asked()]
        for request, word in zip(requests, ("first", "second", "third"), strict=True):
            request.about = word
            await client.send(request)
    assert [request.failed for request in requests] == [False, True, True], requests
    assert {request.status for request in requests[1:]} == {FOREIGN}


async def test_one_of_twenty_that_fails_is_counted() -> None:
    async def fails(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if number % 20 else OK.replace(b"200 OK", b"500 No"))

    async with serving(fails) as client:
        requests = [asked() for _ in range(100)]
        for request in requests:
            await client.send(request)
    assert sum(request.failed for request in requests) == 5
    assert {request.status for request in requests if request.failed} == {500}


async def test_a_client_that_breaks_loses_no_request_from_the_record() -> None:
    record = StringIO()
    async with serving(whole) as client:
        request = Request("create", "keep-alive", time.monotonic(), "POST", "/v1/artifacts", key="a-key")
        await client.serve(request, record)  # an answer without an id
    line = json.loads(record.getvalue())
    assert line["status"] == 0 and line["error"].startswith("broken: KeyError"), line


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
    record, stop, enough = StringIO(), asyncio.Event(), asyncio.Event()

    async def stalls(number: int, writer: asyncio.StreamWriter) -> None:
        """The fifth waits for the fortieth, which a client that waits for answers would never send."""
        if number == 5:
            await enough.wait()
        if number == 40:
            enough.set()
        if number == 60:
            stop.set()
        writer.write(OK)

    async with serving(stalls) as client:
        client.make = lambda operation, due, kind, number: Request("read", "keep-alive", due, "GET", "/v1/me")  # type: ignore[method-assign]
        # Sooner than the client itself gives a request up.
        sent = await asyncio.wait_for(client.run(100, record, stop), PATIENCE_S - 5)
    lines = [json.loads(line) for line in record.getvalue().splitlines()]
    assert len(lines) == sent >= 60
    # Thirty-five requests at a hundred per second, less what overtook another.
    assert max(line["done"] - line["due"] for line in lines) >= 0.2
    due = sorted(line["due"] for line in lines)
    assert all(after - before == pytest.approx(0.01, abs=1e-6) for before, after in itertools.pairwise(due))
