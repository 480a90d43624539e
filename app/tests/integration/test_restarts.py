"""Leaving without losing a request."""

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from api_support.embedder import StubEmbedder
from api_support.forwarder import Paths
from api_support.server import Person, Server, assert_problem, listening_socket

from lib.waiting import wait_for


@pytest.fixture
def stub() -> Generator[StubEmbedder]:
    """Lets a POST last as long as the test wants (up to the request's patience)."""
    service = StubEmbedder()
    yield service
    service.close()


def test_a_request_in_flight_is_answered_before_the_process_leaves(
    forwarders: Paths, admin_url: str, stub: StubEmbedder
) -> None:
    with listening_socket() as listening:
        environment = {"EMBEDDINGS": "http", "EMBEDDINGS_URL": stub.url, **forwarders.environment}
        server = Server(listening, **environment)
        server.wait_until_serving()
        person = Person(server.url, "inflight@example.org")
        stub.gate.clear()
        with ThreadPoolExecutor(1) as threads:
            posting = threads.submit(person.http.post, "/v1/artifacts", json={"name": "last", "text": "text"})
            wait_for("the POST is under way", lambda: stub.calls, 10, interval_s=0.02)
            server.terminate()
            assert posting.result().status_code == 201
        assert server.process.wait(20) == 0, server.output()
        assert '"event":"left"' in server.output()


def test_a_lame_duck_is_not_ready_and_sends_its_clients_away(forwarders: Paths, admin_url: str) -> None:
    with listening_socket() as listening:
        server = Server(listening, **{**forwarders.environment, "API_LAME_DUCK": "3s"})
        server.wait_until_serving()
        with httpx.Client(base_url=server.url) as http:
            assert "Connection" not in http.get("/health/ready").headers
            server.terminate()
            wait_for("the server leaves", lambda: '"event":"leaving"' in server.output(), 10)
            answer = http.get("/health/ready")
            assert assert_problem(answer, 503)["checks"]["draining"]
            assert answer.headers["Connection"] == "close"
            # It still serves whoever comes meanwhile.
            assert httpx.get(f"{server.url}/health/live").status_code == 200
        assert server.stop() == 0


def test_restarts_on_a_held_socket_lose_no_request(forwarders: Paths, admin_url: str) -> None:
    """As on a host: two instances share the socket and are replaced one after the other under load."""
    environment = {**forwarders.environment, "API_LAME_DUCK": "100ms"}
    with listening_socket() as listening:
        servers = [Server(listening, **environment) for _ in range(2)]
        for server in servers:
            server.wait_until_serving()
        person = Person(servers[0].url, "busy@example.org")
        stop = threading.Event()

        def load(number: int) -> list[int]:
            statuses: list[int] = []
            # A connection for each request, as nginx does.
            headers = {**person.http.headers, "Connection": "close"}
            with httpx.Client(base_url=servers[0].url, headers=headers, timeout=30) as http:
                while not stop.is_set():
                    answer = http.post("/v1/artifacts", json={"name": f"by {number}", "text": "text"})
                    statuses.append(answer.status_code)
            return statuses

        with ThreadPoolExecutor(2) as threads:
            loads = [threads.submit(load, number) for number in range(2)]
            try:
                for place in range(2):
                    leaving = servers[place]
                    assert leaving.stop() == 0
                    servers[place] = Server(listening, **environment)
                    servers[place].wait_until_serving()
            finally:
                stop.set()
            statuses = [status for one in loads for status in one.result()]
        assert set(statuses) == {201}
        assert len(person.names()) == len(statuses) > 20
        for server in servers:
            assert server.stop() == 0


def test_a_server_starts_while_everything_is_away() -> None:
    with listening_socket() as listening:
        server = Server(listening)  # the settings of nowhere
        server.wait_until_serving()
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        assert_problem(httpx.get(f"{server.url}/health/ready", timeout=10), 503)
        assert server.stop() == 0


def test_a_taken_port_is_one_line(forwarders: Paths, admin_url: str) -> None:
    with listening_socket() as listening, listening_socket() as taken:
        server = Server(listening, METRICS_PORT=str(taken.getsockname()[1]))
        assert server.process.wait(30) == 1
        assert server.output().startswith("cannot listen on")
        assert server.output().count("\n") == 1
