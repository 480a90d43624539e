"""The client of the rollout drills over HTTP/2, against a server that misbehaves; and the whole program over TLS."""

import asyncio
import datetime
import itertools
import json
import os
import random
import signal
import socket
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, Response, request

from drills.rollout.client import KINDS, Client, Request
from drills.rollout.judge import acknowledged, judge, read
from drills.rollout.load import Stored, look_for
from lib.fleet import REPOSITORY
from lib.toy_h2 import Answer, Connection, Stream
from lib.waiting import wait_for
from pki import Authority, new_authority, new_key, sign, subject, to_pem

NAME = "api.example.test"


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Client]:
    """A client of a toy server; `answer` is given how many requests there were, and this one."""
    numbers = itertools.count(1)
    server = await asyncio.start_server(
        lambda reader, writer: Connection(answer, lambda: next(numbers)).serve(reader, writer), "127.0.0.1", 0
    )
    client = Client("127.0.0.1", NAME, Path(), server.sockets[0].getsockname()[1], secure=False)
    try:
        yield client
    finally:
        await client.close()
        server.close()


def asked(method: str = "GET", key: str = "") -> Request:
    """A request that is due now."""
    return Request("read", "h2", time.monotonic(), method, "/v1/me", key=key)


async def whole(_: int, stream: Stream) -> None:
    stream.answer()


async def refused_once(number: int, stream: Stream) -> None:
    stream.refuse() if number == 1 else stream.answer()


async def refused(_: int, stream: Stream) -> None:
    stream.refuse()


async def reset_once(number: int, stream: Stream) -> None:
    stream.reset() if number == 1 else stream.answer()


async def gone_unseen_once(number: int, stream: Stream) -> None:
    """The connection is closed, and the server has not looked at the request."""
    stream.go_away(seen=0) if number == 1 else stream.answer()


async def gone_seen_once(number: int, stream: Stream) -> None:
    """The connection is closed, and the server may have done what it was asked for."""
    stream.go_away(seen=stream.number) if number == 1 else stream.answer()


@pytest.mark.parametrize(
    ("answer", "method", "key", "fails", "retried_for"),
    [
        (whole, "POST", "", False, ""),
        (refused_once, "GET", "", False, "unprocessed"),
        # The server has not looked at it, so that whatever it is may be repeated.
        (refused_once, "POST", "", False, "unprocessed"),
        (refused, "POST", "", True, "unprocessed"),
        (reset_once, "POST", "", True, ""),
        (reset_once, "POST", "a-key", False, "closed"),
        (gone_unseen_once, "POST", "", False, "unprocessed"),
        (gone_seen_once, "POST", "", True, ""),
        (gone_seen_once, "GET", "", False, "closed"),
    ],
)
async def test_what_fails_and_what_is_retried(
    answer: Answer, method: str, key: str, fails: bool, retried_for: str
) -> None:
    async with serving(answer) as client:
        sent = asked(method, key)
        await client.send(sent)
    assert (sent.failed, sent.retried_for) == (fails, retried_for), sent
    assert sent.retries == bool(retried_for)


async def test_what_the_library_sends_again_by_itself_is_a_retry() -> None:
    """And the only one: whoever is turned away once more was not served."""

    async def turned_away(number: int, stream: Stream) -> None:
        stream.answer() if number in (1, 3) else stream.go_away(seen=max(0, stream.number - 2))

    async with serving(turned_away) as client:
        sent = [asked("POST") for _ in range(3)]
        for one in sent:
            await client.send(one)
    assert [(one.retries, one.failed) for one in sent] == [(0, False), (1, False), (1, True)], sent


# --- the whole program


class Toy:
    """An API that keeps what it is told, and may lose it or fail."""

    def __init__(self, fails_every: int = 0) -> None:
        self.app, self.stored, self.versions = Quart("toy"), dict[str, dict[str, str]](), Counter[str]()
        self._numbers = itertools.count(1)
        self.fails_every = fails_every

        @self.app.before_request
        async def fail() -> Response | None:
            self.versions[request.http_version] += 1
            # An answer that comes before the whole request breaks hypercorn's HTTP/2 connection.
            await request.get_data()
            if request.path.startswith("/v1/artifacts") and self.fails_every:
                return None if next(self._numbers) % self.fails_every else Response("{}", 500)
            return None

        @self.app.post("/v1/auth/register")
        async def register() -> tuple[dict[str, str], int]:
            return {"email": (await request.get_json())["email"]}, 201

        @self.app.post("/v1/auth/login")
        async def login() -> dict[str, str]:
            return {"access_token": (await request.get_json())["email"]}

        @self.app.get("/v1/me")
        async def me() -> dict[str, str]:
            return {"email": request.headers["Authorization"].removeprefix("Bearer ")}

        @self.app.post("/v1/artifacts")
        async def create() -> tuple[dict[str, str], int]:
            number = str(uuid.uuid4())
            owner = request.headers["Authorization"]
            self.stored[number] = {"id": number, "owner": owner, **await request.get_json()}
            return self.stored[number], 201

        @self.app.get("/v1/artifacts")
        async def list_() -> dict[str, object]:
            after, limit = int(request.args.get("after") or 0), 3
            mine = [one for one in self.stored.values() if one["owner"] == request.headers["Authorization"]]
            return {"items": mine[after : after + limit], "next": str(after + limit) if mine[after + limit :] else None}

        @self.app.get("/v1/artifacts/<number>")
        async def get(number: str) -> dict[str, str]:
            return {"items": "none"} if number == "search" else self.stored[number]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, and a certificate of the API's name by it."""
    folder, now = tmp_path_factory.mktemp("tls"), datetime.datetime.now(datetime.UTC)
    key, own = new_key(), new_key()
    authority = new_authority(key, "Test CA", 1, now)
    private = load_pem_private_key(own.encode(), None)
    wanted = x509.CertificateSigningRequestBuilder().subject_name(subject(NAME)).sign(private, hashes.SHA256())  # type: ignore[arg-type]
    (folder / "ca.crt").write_text(authority)
    (folder / "key").write_text(own)
    (folder / "crt").write_text(sign(to_pem(wanted), NAME, [NAME], Authority(key, authority), 1, now))
    return folder


@asynccontextmanager
async def listening(toy: Toy, folder: Path, port: int) -> AsyncIterator[None]:
    """The toy behind hypercorn, with TLS."""
    config, over = Config(), asyncio.Event()
    config.bind, config.accesslog, config.errorlog = [f"127.0.0.1:{port}"], None, None
    config.certfile, config.keyfile = str(folder / "crt"), str(folder / "key")
    config.graceful_timeout = 0.1
    task = asyncio.create_task(serve(toy.app, config, shutdown_trigger=over.wait))
    yield
    over.set()
    await task


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def find(lines: list[dict[str, Any]], users: list[dict[str, str]], ca: Path, port: int) -> Stored:
    """What the drills find of a record's artifacts."""
    context = ssl.create_default_context(cafile=str(ca))

    def with_name(request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = NAME

    with httpx.Client(
        base_url=f"https://127.0.0.1:{port}", verify=context, event_hooks={"request": [with_name]}
    ) as client:
        return look_for(client, lines, users, random.Random(1))


async def test_the_program_sends_over_all_kinds_until_it_is_told_to_stop(ca: Path, tmp_path: Path, port: int) -> None:
    toy, record = Toy(fails_every=20), tmp_path / "record"
    async with listening(toy, ca, port):
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "drills.rollout.client", "--address", "127.0.0.1", "--port", str(port),
            "--name", NAME, "--ca", ca / "ca.crt", "--rate", "80", "--calibrate", "0.3", "--record", record,
            cwd=REPOSITORY / "tests", stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        assert program.stdout is not None
        said = json.loads(await program.stdout.readline())
        before = toy.versions.total()
        await asyncio.to_thread(wait_for, "requests", lambda: toy.versions.total() >= before + 100, timeout_s=20)
        program.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(program.wait(), 10) == 0
        lines, users = read(record)
        toy.fails_every = 0
        whole = await asyncio.to_thread(find, lines, users, ca / "ca.crt", port)
        lost, doubled, changed = [line for line in lines if acknowledged(line)][:3]
        del toy.stored[lost["id"]]
        toy.stored["again"] = {**toy.stored[doubled["id"]], "id": "again"}
        toy.stored[changed["id"]]["text"] += "!"
        damaged = await asyncio.to_thread(find, lines, users, ca / "ca.crt", port)
    verdict, due = judge(lines), [line["due"] for line in lines]
    assert said["rate"] == pytest.approx(min(80, 0.4 * said["capacity"]), abs=0.1)
    assert verdict.requests - 1 == pytest.approx((max(due) - min(due)) * said["rate"], rel=0.01)
    assert set(verdict.by_kind) == set(KINDS) and verdict.retries == 0
    assert {"create", "read", "search"} <= set(verdict.by_operation)
    # One artifact request of twenty was answered 500, and each of these was seen.
    assert verdict.failures == sum(line["status"] == 500 for line in lines) > 0
    assert toy.versions["2"] > 20 and toy.versions["1.1"] > 40
    assert whole == Stored()
    assert damaged == Stored([lost["key"]], [doubled["key"]], [changed["key"]])


async def test_a_server_that_another_ca_vouches_for_gets_no_request(ca: Path, tmp_path: Path, port: int) -> None:
    other = tmp_path / "ca.crt"
    other.write_text(new_authority(new_key(), "Another CA", 1, datetime.datetime.now(datetime.UTC)))
    toy = Toy()
    async with listening(toy, ca, port):
        client = Client("127.0.0.1", NAME, other, port)
        sent = [Request("read", kind, time.monotonic(), "GET", "/v1/me") for kind in KINDS]
        for one in sent:
            await client.send(one)
        await client.close()
    assert all(one.failed and "CERTIFICATE_VERIFY_FAILED" in one.error for one in sent), sent
    assert toy.versions.total() == 0
