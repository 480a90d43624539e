"""A release proves itself before it takes a connection."""

import re

import httpx
from api_support.forwarder import Mode, Paths
from api_support.server import Server, listening_socket


def serving(paths: Paths) -> Server:
    """A server that works, on a socket of its own."""
    with listening_socket() as listening:
        server = Server(listening, **paths.environment)
        server.wait_until_serving()
    return server


def beside(paths: Paths, server: Server) -> Server:
    """A new process beside it; it is given another socket, so that whoever answers is known."""
    port = str(httpx.URL(server.url).port)
    with listening_socket() as listening:
        return Server(listening, **paths.environment, API_PORT=port, API_PREFLIGHT_REQUESTS="40")


def test_it_serves_once_it_has_proven_itself_beside_the_one_that_serves(paths: Paths, admin_url: str) -> None:
    old = serving(paths)
    new = beside(paths, old)
    try:
        new.wait_until_serving()
        proven = re.search(r'.*"event":"proven".*', new.output())
        assert proven is not None, new.output()
        assert '"compared":true' in proven[0]
        assert httpx.get(f"{new.url}/health/ready").status_code == 200
    finally:
        assert new.stop() == 0
        assert old.stop() == 0


def test_it_does_so_alone_when_nobody_serves(paths: Paths, admin_url: str) -> None:
    old = serving(paths)
    assert old.stop() == 0
    new = beside(paths, old)
    try:
        new.wait_until_serving()
        assert '"compared":false' in new.output()
    finally:
        assert new.stop() == 0


def test_it_never_serves_when_what_it_needs_is_away(paths: Paths, admin_url: str) -> None:
    old = serving(paths)
    try:
        paths.redis.set(Mode.REFUSE)
        new = beside(paths, old)
        assert new.process.wait(60) == 1
        assert "does not serve: GET /health/ready answered 503" in new.output()
        assert '"event":"serving"' not in new.output()
    finally:
        old.stop()
