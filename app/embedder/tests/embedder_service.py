"""Starts the real service from an unpacked release, over HTTP on a free loopback port."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from lib.waiting import wait_for

MODEL = "all-MiniLM-L6-v2"


@dataclass
class Service:
    """A running arches-embedder."""

    process: subprocess.Popen[bytes]
    http: httpx.Client

    def post(self, **fields: Any) -> httpx.Response:
        """POST /v1/embeddings with the model's name unless another is given."""
        return self.http.post("/v1/embeddings", json={"model": MODEL, **fields})

    def embed(self, *texts: str) -> list[list[float]]:
        """The vectors of the texts."""
        answer = self.post(input=list(texts))
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"]
        assert [item["index"] for item in data] == list(range(len(texts)))
        return [item["embedding"] for item in data]

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(release: Path, log: int | IO[bytes] | None = None, **settings: str) -> subprocess.Popen[bytes]:
    """Start the service with the hosts' Python version and the release's own modules only."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(release / "lib/python3.13/site-packages"),
        "EMBEDDER_MODEL_DIR": str(release / "model"),
        **settings,
    }
    return subprocess.Popen([sys.executable, "-P", "-s", "-m", "arches_embedder"], env=environment, stderr=log)


@contextmanager
def running(release: Path, **settings: str) -> Iterator[Service]:
    """A service of its own until the end of the block; it must end by itself on SIGTERM."""
    port = free_port()
    process = start(release, EMBEDDER_PORT=str(port), **settings)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

            def ready() -> bool:
                assert process.poll() is None, "the service ended by itself"
                try:
                    return http.get("/health/ready").status_code == 200
                except httpx.TransportError as error:
                    raise OSError(str(error)) from error

            wait_for("the embedder is ready", ready, timeout_s=30)
            yield Service(process, http)
        process.terminate()
        assert process.wait(timeout=15) == 0
    finally:
        process.kill()
        process.wait()
