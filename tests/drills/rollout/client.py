"""An open-loop client of the API, in a process of its own: what a user outside meets while the fleet is worked on.

    python -m drills.rollout.client --address 192.0.2.11 --name api.example.test --ca ca.crt --rate 60 --record file

Requests go out at fixed moments, whatever becomes of those before them, so a server that stalls is not spared; time
counts from the moment that was meant. Three kinds of connection take turns: HTTP/1.1 kept alive, HTTP/1.1 closed after
each answer, HTTP/2. SIGTERM ends it: nothing more is sent, what is under way is waited for. One JSON line per request.

A request that got no answer is sent once more where RFC 9110 (9.2.2) lets a client do so by itself: it is safe, its
`Idempotency-Key` makes it so, or the server said over HTTP/2 that it has not looked at it (RFC 9113, 8.7). That is
counted as a retry, with its reason. What fails then, any 5xx, and an answer to somebody else's request, is a failure.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import ssl
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import h2.errors
import h2.events
import httpx

KINDS = ("keep-alive", "close", "h2")
# nginx says goodbye on HTTP/2 after a thousand requests and still answers those under way (RFC 9113, 6.8), but the
# library drops them (httpcore's pull request 1054). What must not be repeated does not go by HTTP/2 here.
ONLY_ONCE = ("keep-alive", "close")
# What people do, in parts of a hundred.
MIX = {"create": 28, "read": 46, "search": 24, "register": 1, "login": 1}
PATIENCE_S = 15.0
# In the place of a status: the answer was that to another request.
FOREIGN = -1
USERS = 6
# Fewer requests per second show nothing.
SLOWEST = 2.0
WORDS = ("harbour", "orchard", "lantern", "granite", "meadow", "compass", "violin", "saffron", "glacier", "willow")


def text_of(key: str) -> str:
    """The text of the artifact with this key."""
    return f"{' '.join(random.Random(key).sample(WORDS, 4))} {key}"


@dataclass
class Request:
    """One request and what became of it; times are monotonic, in seconds."""

    operation: str
    kind: str
    due: float
    method: str
    path: str
    body: dict[str, Any] | None = None
    key: str = ""
    user: int = 0
    expected: int = 200
    about: str = ""  # is in the answer to this request, and in no other
    sent: float = 0.0
    done: float = 0.0
    status: int = 0
    retries: int = 0
    retried_for: str = ""
    error: str = ""
    served_by: str = ""
    id: str = ""

    @property
    def repeatable(self) -> bool:
        """Whether a client may send it again by itself."""
        return self.method == "GET" or bool(self.key)

    @property
    def failed(self) -> bool:
        """Whether its sender was not served, or not by one retry at most."""
        return self.status != self.expected or self.retries > 1

    def answered(self, answer: httpx.Response) -> None:
        """Note what a server said."""
        self.status, self.served_by = answer.status_code, answer.headers.get("x-served-by", "")
        if self.status == self.expected and self.about not in answer.text:
            self.status = FOREIGN
        if self.status != self.expected:
            self.error = f"{self.status}: {answer.text[:200]}"


class Attempt:
    """What became of one attempt to send a request, as the library tells (its extension `trace`)."""

    def __init__(self) -> None:
        self.sent = 0  # more than once: the library has sent it again by itself, which HTTP/2 allows
        self.stream = 0
        self.answered = False

    async def __call__(self, event: str, details: dict[str, Any]) -> None:
        """Hear of an event."""
        if event.endswith("send_request_headers.started"):
            self.sent += 1
            self.stream = details.get("stream_id", 0)
        elif event.endswith("receive_response_headers.complete"):
            self.answered = True

    def reason(self, error: Exception) -> str:
        """Why there is no answer: timeout, refused (no connection), unprocessed, cut (in mid-answer) or closed."""
        if isinstance(error, httpx.TimeoutException):
            return "timeout"
        if not self.sent:
            return "refused"
        if self._unprocessed(error):
            return "unprocessed"
        return "cut" if self.answered else "closed"

    def _unprocessed(self, error: Exception) -> bool:
        """Whether the server said that it has not looked at the request: then it may be repeated, whatever it is."""
        match error.__cause__ and error.__cause__.args:
            case (h2.events.StreamReset() as reset,):
                return reset.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
            case (h2.events.ConnectionTerminated() as goaway,):
                return self.stream > (goaway.last_stream_id or 0)
        return False


@dataclass
class User:
    """A user of the API, and the artifacts that were acknowledged."""

    email: str
    password: str
    token: str = "none yet"
    artifacts: deque[str] = field(default_factory=lambda: deque(maxlen=200))


class Client:
    """The three kinds of connection to one edge, and the users behind them."""

    def __init__(self, address: str, name: str, ca: Path, port: int = 443, secure: bool = True) -> None:
        self._name, self.port = name, port
        context: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca)) if secure else False
        base = f"{'https' if secure else 'http'}://{address}:{port}"
        # No limit of our own may hold a request back.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)
        self._clients = {
            kind: httpx.AsyncClient(
                base_url=base, verify=context, timeout=PATIENCE_S, limits=limits, trust_env=False,
                http1=kind != "h2", http2=kind == "h2",
            )
            for kind in KINDS
        }  # fmt: skip
        self.users = [User(f"{secrets.token_hex(8)}@example.org", secrets.token_urlsafe(12)) for _ in range(USERS)]

    async def send(self, request: Request) -> httpx.Response | None:
        """Send a request, once more where that is allowed; the answer, or None when there was none in the end."""
        headers = {"Host": self._name}
        if request.operation not in ("register", "login"):
            headers["Authorization"] = f"Bearer {self.users[request.user].token}"
        if request.key:
            headers["Idempotency-Key"] = request.key
        if request.kind == "close":
            headers["Connection"] = "close"
        request.sent = time.monotonic()
        answer = None
        while answer is None:
            attempt = Attempt()
            try:
                answer = await self._clients[request.kind].request(
                    request.method, request.path, json=request.body, headers=headers,
                    extensions={"sni_hostname": self._name, "trace": attempt},
                )  # fmt: skip
            except httpx.HTTPError as error:
                reason = attempt.reason(error)
                request.error = f"{reason}: {type(error).__name__}: {error}"[:200]
                # After a timeout it may still be at work.
                again = reason == "unprocessed" or (request.repeatable and reason != "timeout")
                self._retried(request, attempt.sent - 1, "unprocessed")
                if not again or request.retries:
                    break
                self._retried(request, 1, reason)
            else:
                self._retried(request, attempt.sent - 1, "unprocessed")
        request.done = time.monotonic()
        if answer is not None:
            request.answered(answer)
        return answer

    @staticmethod
    def _retried(request: Request, times: int, reason: str) -> None:
        if times > 0:
            request.retries += times
            request.retried_for = reason
        if request.retries > 1:
            request.error = "retried more than once"

    async def login(self) -> None:
        """Make the users and log them in. Raises RuntimeError when the API does not let us."""
        for number, user in enumerate(self.users):
            for operation in ("register", "login"):
                request = self.make(operation, time.monotonic(), "keep-alive", number)
                if operation == "register":
                    request.body = {"email": user.email, "password": user.password, "name": "Drill"}
                    request.about = user.email
                answer = await self.send(request)
                if answer is None or request.failed:
                    raise RuntimeError(f"{operation}: {request.error}")
            user.token = answer.json()["access_token"]  # type: ignore[union-attr]

    def make(self, operation: str, due: float, kind: str, number: int) -> Request:
        """A request of a user; what it needs of earlier answers is taken from those."""
        user = self.users[number]
        match operation:
            case "create":
                key = secrets.token_hex(16)
                body = {"name": key, "text": text_of(key)}
                return Request(operation, kind, due, "POST", "/v1/artifacts", body, key, number, 201, key)
            case "read" if user.artifacts:
                artifact = random.choice(user.artifacts)
                return Request(operation, kind, due, "GET", f"/v1/artifacts/{artifact}", user=number, about=artifact)
            case "search":
                path = f"/v1/artifacts/search?q={random.choice(WORDS)}&limit=3"
                return Request(operation, kind, due, "GET", path, user=number)
            case "register":
                account = {"email": f"{secrets.token_hex(8)}@example.org", "password": user.password, "name": "Drill"}
                key = secrets.token_hex(16)
                path = "/v1/auth/register"
                return Request(operation, kind, due, "POST", path, account, key, number, 201, account["email"])
            case "login":
                account = {"email": user.email, "password": user.password}
                return Request(operation, kind, due, "POST", "/v1/auth/login", account, "", number)
            case _:
                return Request("read", kind, due, "GET", "/v1/me", user=number, about=user.email)

    async def serve(self, request: Request, record: TextIO | None) -> None:
        """Send a request and note what became of it. Nothing that happens meanwhile takes it from the record."""
        try:
            answer = await self.send(request)
            if answer is not None and not request.failed:
                self._learn(request, answer)
        except Exception as error:
            request.done, request.status = time.monotonic(), 0
            request.error = f"broken: {type(error).__name__}: {error}"[:200]
        if record is not None:
            line = {name: value for name, value in asdict(request).items() if name not in ("body", "path", "about")}
            record.write(json.dumps(line) + "\n")

    def _learn(self, request: Request, answer: httpx.Response) -> None:
        user = self.users[request.user]
        if request.operation == "create":
            request.id = answer.json()["id"]
            user.artifacts.append(request.id)
        elif request.operation == "login":
            # A token lives for minutes, a walk through the fleet for longer; logins come often enough.
            user.token = answer.json()["access_token"]

    async def capacity(self, seconds: float, workers: int = 6) -> float:
        """Served requests per second of a closed loop, which is bounded in time and by its workers."""
        ends, answers = time.monotonic() + seconds, 0

        async def work() -> None:
            nonlocal answers
            while time.monotonic() < ends:
                request = self.draw(time.monotonic())
                await self.serve(request, None)
                answers += not request.failed

        await asyncio.gather(*(work() for _ in range(workers)))
        return answers / seconds

    def draw(self, due: float) -> Request:
        """Any request of the mix."""
        [operation] = random.choices(list(MIX), list(MIX.values()))
        kinds = ONLY_ONCE if operation == "login" else KINDS
        return self.make(operation, due, random.choice(kinds), random.randrange(USERS))

    async def run(self, rate: float, record: TextIO, stop: asyncio.Event) -> int:
        """Send requests at a rate (per second) until told to stop; then wait for those that are under way; how many."""
        began, number, tasks = time.monotonic(), 0, set[asyncio.Task[None]]()
        while not stop.is_set():
            due = began + number / rate
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, due - time.monotonic()))
                break
            task = asyncio.create_task(self.serve(self.draw(due), record))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)
        return number

    async def close(self) -> None:
        """Give the connections back."""
        for client in self._clients.values():
            await client.aclose()


async def main(options: argparse.Namespace) -> None:
    """Calibrate, say so, and send until SIGTERM."""
    # Nobody outside waits for a core of this computer, which the fleet and Ansible keep busy. Without the right to that
    # the client's own waiting is counted as the API's. Being nice would not do: it counts only inside of a session.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    client = Client(options.address, options.name, options.ca, options.port)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await client.login()
    capacity = await client.capacity(options.calibrate)
    rate = min(options.rate, 0.4 * capacity)
    if rate < SLOWEST:
        raise RuntimeError(f"the API served {capacity:.1f} requests per second: too few for a drill")
    print(json.dumps({"capacity": round(capacity, 1), "rate": round(rate, 1)}), flush=True)
    with options.record.open("w", encoding="utf-8") as record:
        sent = await client.run(rate, record, stop)
        users = [{"email": user.email, "password": user.password} for user in client.users]
        record.write(json.dumps({"sent": sent, "users": users}) + "\n")
    await client.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=150.0, help="at most so many requests per second")
    parser.add_argument("--calibrate", type=float, default=4.0, help="seconds")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    arguments.seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    random.seed(arguments.seed)
    print(f"seed {arguments.seed}", file=sys.stderr, flush=True)
    asyncio.run(main(arguments))
