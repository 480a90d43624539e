"""Limits, bad input, overload, faults."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import pytest

from embedder_service import MODEL, Service, free_port, running, start
from lib.waiting import wait_for

LONG = "word " * 300
JSON = {"Content-Type": "application/json"}


def assert_problem(answer: httpx.Response, status: int) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert answer.json()["detail"]


def wait_until_admitted(service: Service, count: int) -> None:
    wait_for(
        f"{count} requests are admitted",
        lambda: service.metric("embedder_requests_admitted") == count,
        timeout_s=5,
        interval_s=0.02,
    )


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 422),
        ({"input": []}, 422),
        ({"input": ""}, 422),
        ({"input": ["fine", ""]}, 422),
        ({"input": None}, 422),
        ({"input": [1, 2, 3]}, 422),
        ({"input": [["a"]]}, 422),
        ({"input": {"text": "a"}}, 422),
        ({"input": ["a"] * 65}, 422),
        ({"input": "a" * 32_769}, 422),
        ({"input": "a", "dimensions": 12}, 422),
        ({"input": "a", "encoding_format": "hex"}, 422),
        ({"input": "a", "encoding_format": ["float"]}, 422),
        ({"input": "a", "surprise": True}, 422),
        ({"input": "a", "model": "another"}, 404),
        ({"input": "a", "model": None}, 404),
    ],
)
def test_wrong_fields_are_refused(service: Service, fields: dict[str, Any], status: int) -> None:
    assert_problem(service.post(**fields), status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"input": "\xc3\x28"}',
        b"[" * 100_000,
        b'{"input":' * 50_000,
        b"1" * 10_000,
        b'{"model": "%b", "input": "\\ud800"}' % MODEL.encode(),
        b"[]",
        b'"text"',
        b"null",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_wrong_bodies_are_refused(service: Service, body: bytes) -> None:
    answer = service.http.post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert_problem(answer, answer.status_code)


def test_other_refusals_are_problems_too(service: Service) -> None:
    assert_problem(service.http.post("/v1/embeddings", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    assert_problem(service.http.post("/v1/embeddings", content=b" " * 4_194_305, headers=JSON), 413)
    assert_problem(service.http.get("/v1/embeddings"), 405)
    assert_problem(service.http.get("/nothing"), 404)


def test_the_largest_allowed_request_is_served(service: Service) -> None:
    assert len(service.embed(*["word" * 8192] * 64)) == 64


def test_health_and_metrics(service: Service) -> None:
    assert service.http.get("/health/live").status_code == 200
    assert service.http.get("/health/ready").json() == {"status": "ready", "model": MODEL, "dimensions": 384}
    texts, tokens = service.metric("embedder_texts_total"), service.metric("embedder_tokens_total")
    service.embed("one", "two")
    assert service.metric("embedder_texts_total") == texts + 2
    assert service.metric("embedder_tokens_total") == tokens + 6


def test_a_full_queue_says_so_and_empties(release: Path) -> None:
    with running(release, EMBEDDER_MAX_REQUESTS="2") as service:
        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(service.post, input=[LONG] * 30) for _ in range(2)]
            wait_until_admitted(service, 2)
            answer = service.post(input="one more")
            assert_problem(answer, 503)
            assert answer.headers["Retry-After"] == "1"
            assert service.http.get("/health/ready").status_code == 200
            assert [request.result().status_code for request in busy] == [200, 200]
        assert service.post(input="one more").status_code == 200


def test_a_short_request_does_not_wait_for_a_long_one(service: Service) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(service.post, input=[LONG] * 30)
        wait_until_admitted(service, 1)
        assert service.post(input="short").status_code == 200
        assert not long.done()
        assert long.result().status_code == 200


def test_a_client_that_goes_away_frees_its_place(service: Service) -> None:
    embedded = service.metric("embedder_texts_total")
    with pytest.raises(httpx.ReadTimeout):
        service.http.post("/v1/embeddings", json={"model": MODEL, "input": [LONG] * 64}, timeout=0.2)
    wait_until_admitted(service, 0)
    assert service.metric("embedder_texts_total") == embedded


def test_sigterm_finishes_what_was_admitted(release: Path) -> None:
    with running(release) as service:
        answers: list[httpx.Response] = []
        request = threading.Thread(target=lambda: answers.append(service.post(input=[LONG] * 20)))
        request.start()
        wait_until_admitted(service, 1)
        service.process.send_signal(signal.SIGTERM)
        request.join()
        assert [answer.status_code for answer in answers] == [200]
        # Waited for here: a second SIGTERM, after the first one's handler has gone, would kill it.
        assert service.process.wait(timeout=15) == 0


def test_it_reports_to_nobody(release: Path, tmp_path: Path) -> None:
    # onnxruntime would keep a device id and a spool of events for its maker below the home directory.
    with running(release, HOME=str(tmp_path)) as service:
        service.embed("a word")
        assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMBEDDER_PORT", "abc"),
        ("EMBEDDER_PORT", "70000"),
        ("EMBEDDER_MAX_TEXTS", "0"),
        ("EMBEDDER_MODEL_DIR", "/nowhere"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_2(release: Path, name: str, value: str) -> None:
    process = start(release, log=PIPE, **{name: value})
    _, log = process.communicate(timeout=30)
    assert process.returncode == 2
    assert log.decode().count("\n") == 1
    assert f"{name} is {value!r}" in log.decode()


def test_a_taken_port_is_one_line_and_exit_2(release: Path, service: Service) -> None:
    process = start(release, log=PIPE, EMBEDDER_PORT=str(service.http.base_url.port))
    _, log = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "cannot listen on EMBEDDER_HOST 127.0.0.1" in log.decode()


@pytest.mark.parametrize(
    "damage", [slice(50_000_000, 60_000_000), slice(50_000_000, None)], ids=["a layer", "all layers"]
)
def test_damaged_weights_are_not_served(release: Path, tmp_path: Path, damage: slice) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).symlink_to(release / "model" / name)
    weights = bytearray((release / "model/model.safetensors").read_bytes())
    weights[damage] = bytes(len(weights[damage]))
    (tmp_path / "model.safetensors").write_bytes(weights)
    process = start(release, log=PIPE, EMBEDDER_MODEL_DIR=str(tmp_path), EMBEDDER_PORT=str(free_port()))
    _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "known example" in log.decode()
