"""A new release proves itself before it takes a connection: on a private socket, beside the one that serves.

The application is started once for this alone, on a Unix socket that nobody else knows. A conversation of the kind that
clients lead goes through it, some of it also to the server that works now, so that both meet the same database at the
same moment: an answer that was not expected, or a median beyond `SLOWER` times the other's, and the release is refused.
"""

import asyncio
import dataclasses
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import structlog
from hypercorn.asyncio import serve
from hypercorn.config import Config

from .app import create_app
from .lib.settings import Settings

SLOWER = 3.0  # how many times slower than what serves is refused
COMPARED = 50  # so many requests, about, also go to what serves: enough for a median, and no slower than it must be
FLOOR = 0.02  # seconds: medians below this are fast enough, whatever the ratio
PATIENCE = 5.0  # seconds for one answer, beside those that the server itself waits for a connection to Postgres

log = structlog.get_logger()


class PreflightFailed(Exception):
    """The release must not serve. The text is one line for whoever rolls it out."""


@dataclass
class Party:
    """One of the two servers: how it is reached, how long its answers took (seconds), what it made."""

    client: httpx.AsyncClient
    seconds: list[float] = field(default_factory=list)
    artifact: str = ""

    async def ask(self, step: "Step", headers: dict[str, str]) -> httpx.Response:
        """The answer to a step. Raises PreflightFailed unless it is the expected one."""
        started = time.perf_counter()
        path = step.path.format(artifact=self.artifact)
        try:
            answer = await self.client.request(step.method, path, json=step.body, headers=headers)
        except httpx.HTTPError as error:
            raise PreflightFailed(f"{step.method} {step.path} got no answer: {error!r}") from None
        self.seconds.append(time.perf_counter() - started)
        if answer.status_code != step.status:
            said = " ".join(answer.text.split())[:300]
            raise PreflightFailed(f"{step.method} {step.path} answered {answer.status_code}: {said}")
        return answer


@dataclass(frozen=True, slots=True)
class Step:
    """A request, and the status that a server in order answers with."""

    method: str
    path: str
    status: int
    body: dict[str, str] | None = None


ROUND = 4  # requests, as below


def conversation(requests: int) -> Iterator[Step]:
    """So many requests of a client who is logged in: write, read, search, remove."""
    for number in range(requests):
        match number % ROUND:
            case 0:
                yield Step(
                    "POST", "/v1/artifacts", 201, {"name": "preflight", "text": f"a release proves itself {number}"}
                )
            case 1:
                yield Step("GET", "/v1/artifacts/{artifact}", 200)
            case 2:
                yield Step("GET", "/v1/artifacts/search?q=release&limit=3", 200)
            case _:
                yield Step("DELETE", "/v1/artifacts/{artifact}", 204)


def verdict(new: list[float], old: list[float]) -> str:
    """Why the new server is too slow beside the old one; empty when it is not. Times in seconds."""
    if not new or not old:
        return ""
    ours, theirs = statistics.median(new), statistics.median(old)
    if ours <= max(SLOWER * theirs, FLOOR):
        return ""
    return f"the median answer takes {ours * 1000:.0f} ms, and {theirs * 1000:.0f} ms from the release that serves"


async def preflight(settings: Settings) -> None:
    """Prove this release with `settings.preflight_requests` requests. Raises PreflightFailed."""
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        async with _served(settings, Path(folder) / "api.sock") as private, _client(settings) as serving:
            new, old = Party(private), Party(serving)
            await new.ask(Step("GET", "/health/ready", 200), {})
            headers = await _login(new)
            new.seconds.clear()  # a password is slow to check, by design
            compared = await converse(new, old, headers, settings.preflight_requests)
    if reason := verdict(new.seconds, old.seconds if compared else []):
        raise PreflightFailed(reason)
    log.info("proven", requests=settings.preflight_requests, compared=compared)


async def converse(new: Party, old: Party, headers: dict[str, str], requests: int) -> bool:
    """Lead the conversation with both; returns whether the old one took part to the end."""
    compared, every = True, max(1, requests // COMPARED)
    for number, step in enumerate(conversation(requests)):
        answer = await new.ask(step, headers)
        if step.status == 201:
            new.artifact = answer.json()["id"]
        if not compared or number // ROUND % every:
            continue
        try:
            answer = await old.ask(step, headers)
            if step.status == 201:
                old.artifact = answer.json()["id"]
        except PreflightFailed as reason:
            # Nobody serves, or it is broken: that is why a release may come, and nothing to measure by.
            log.warning("not compared", reason=str(reason))
            compared = False
    return compared


async def _login(party: Party) -> dict[str, str]:
    account = {"email": f"preflight-{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe(18)}
    await party.ask(Step("POST", "/v1/auth/register", 201, {**account, "name": "Preflight"}), {})
    answer = await party.ask(Step("POST", "/v1/auth/login", 200, account), {})
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def _client(settings: Settings) -> httpx.AsyncClient:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return httpx.AsyncClient(base_url=f"http://{host}:{settings.port}", timeout=_patience(settings), trust_env=False)


def _patience(settings: Settings) -> float:
    """Long enough to hear why a server refuses."""
    return settings.database_connection_timeout + PATIENCE


@asynccontextmanager
async def _served(settings: Settings, path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    """An application of its own on a Unix socket, and a client of it."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.accesslog = None
    config.errorlog = None
    stop = asyncio.Event()
    app = create_app(dataclasses.replace(settings, tracing_enabled=False))
    server = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://preflight", timeout=_patience(settings)
        ) as client:
            yield client
    finally:
        stop.set()
        await server
