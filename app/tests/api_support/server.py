"""A real server process on a socket that the test holds, as systemd would."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx

import arches_api
from lib.waiting import wait_for

from .environment import NOWHERE

# Hands the socket over as descriptor 3 to the process that LISTEN_PID names, as systemd does.
START = """
import os, runpy, sys
os.dup2(int(os.environ.pop("SOCKET")), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
sys.argv = ["arches_api", "serve"]
runpy.run_module("arches_api", run_name="__main__")
"""


def listening_socket() -> socket.socket:
    """A socket on a free port."""
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Server:
    """One process of the API."""

    def __init__(self, listening: socket.socket, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.metrics_port = free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(Path(arches_api.__file__).parents[1]),
                **NOWHERE,
                "DATABASE_CONNECTION_TIMEOUT": "3s",
                "METRICS_PORT": str(self.metrics_port),
                **environment,
                "SOCKET": str(listening.fileno()),
            },
            pass_fds=[listening.fileno()],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def metrics(self) -> str:
        """What Prometheus is told."""
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text

    def wait_until_serving(self) -> None:
        """Raises TimeoutError with the process's output."""
        try:
            wait_for("the server serves", lambda: '"event":"serving"' in self.output() or self.exited(), 30)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.output()}") from None
        assert not self.exited(), self.output()

    def exited(self) -> bool:
        """True when the process has ended."""
        return self.process.poll() is not None

    def output(self) -> str:
        """Everything logged so far."""
        self._log.seek(0)
        return self._log.read()

    def terminate(self) -> None:
        """Asks the process to leave."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Leaves in order; returns the exit code."""
        if not self.exited():
            self.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def serving(**environment: str) -> Generator[Server]:
    """A server that answers, stopped afterwards. Unexpected errors in its log fail the test."""
    with listening_socket() as listening:
        server = Server(listening, **environment)
        try:
            server.wait_until_serving()
            yield server
        finally:
            code = server.stop()
    assert code == 0, server.output()
    assert "unhandled exception" not in server.output(), server.output()


class Person:
    """Somebody with an account, logged in."""

    def __init__(self, url: str, email: str, password: str = "correct horse battery") -> None:
        self.email, self.password = email, password
        self.http = httpx.Client(base_url=url, timeout=30)
        account = {"email": email, "password": password, "name": email.partition("@")[0]}
        self.account: dict[str, Any] = _content(self.http.post("/v1/auth/register", json=account), 201)
        self.tokens = self.login()
        self.http.headers["Authorization"] = f"Bearer {self.tokens['access_token']}"

    def login(self) -> dict[str, Any]:
        """A new pair of tokens."""
        answer = self.http.post("/v1/auth/login", json={"email": self.email, "password": self.password})
        return _content(answer, 200)

    def store(self, name: str, text: str) -> dict[str, Any]:
        """A new artifact."""
        return _content(self.http.post("/v1/artifacts", json={"name": name, "text": text}), 201)

    def search(self, question: str, limit: int = 10) -> dict[str, Any]:
        """Search results."""
        return _content(self.http.get("/v1/artifacts/search", params={"q": question, "limit": limit}), 200)

    def names(self) -> list[str]:
        """The names of all artifacts, newest first, page by page."""
        found: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = _content(self.http.get("/v1/artifacts", params={"limit": "100", **after}), 200)
            found += [item["name"] for item in page["items"]]
            if page["next"] is None:
                return found
            after = {"after": page["next"]}


def _content(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    content: dict[str, Any] = answer.json()
    return content


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The answer is a problem with this status and the headers of every answer."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-Id"] and answer.headers["X-Served-By"]
    return _content(answer, status)
