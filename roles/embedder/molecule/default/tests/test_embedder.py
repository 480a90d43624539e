"""The real model answers on the host, and comes back."""

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from testinfra.host import Host

from lib.waiting import wait_for

MODEL = "all-MiniLM-L6-v2"

# Runs on the host, which has Python: sends one body several times at once, prints [[status, document], ...].
CLIENT = """
import base64, concurrent.futures, json, sys, urllib.error, urllib.request, zlib
body, times = zlib.decompress(base64.b64decode(sys.argv[1])), int(sys.argv[2])
def post(_):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:8090/v1/embeddings", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal)
with concurrent.futures.ThreadPoolExecutor(times) as pool:
    print(json.dumps(list(pool.map(post, range(times)))))
"""
READY = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8090/health/ready', timeout=5)"


def ask(host: Host, times: int = 1, **fields: Any) -> list[tuple[int, dict[str, Any]]]:
    """Send one request several times at once; status and document of each answer."""
    body = base64.b64encode(zlib.compress(json.dumps({"model": MODEL, **fields}).encode())).decode()
    return [
        (status, document)
        for status, document in json.loads(host.check_output("python3 -c %s %s %s", CLIENT, body, str(times)))
    ]


def vectors(host: Host, *texts: str) -> list[tuple[float, ...]]:
    """The vectors of texts."""
    [(status, answer)] = ask(host, input=texts, encoding_format="base64")
    assert status == 200, answer
    return [struct.unpack("<384f", base64.b64decode(item["embedding"])) for item in answer["data"]]


def unit(host: Host, key: str) -> str:
    """A property of the unit."""
    return str(host.check_output(f"systemctl show --value --property={key} arches-embedder"))


def ready(host: Host) -> bool:
    """Whether the service can do its work."""
    return host.run("python3 -c %s", READY).rc == 0


@pytest.mark.parametrize(
    ("sentence", "similarity"),
    [("That is a very happy person", 0.943), ("That is a happy dog", 0.695), ("Today is a sunny day", 0.257)],
)
def test_the_known_example(host: Host, sentence: str, similarity: float) -> None:
    happy, other = vectors(host, "That is a happy person", sentence)
    assert sum(a * b for a, b in zip(happy, other, strict=True)) == pytest.approx(similarity, abs=0.01)


@pytest.mark.parametrize(
    "fields",
    [{"input": ["a"] * 65}, {"input": "a" * 32_769}, {"input": ""}, {"input": "a", "surprise": 1}],
    ids=["many texts", "long text", "no text", "unknown field"],
)
def test_over_limit_input_is_refused_and_harmless(host: Host, fields: dict[str, Any]) -> None:
    [(status, problem)] = ask(host, **fields)
    assert status == 422
    assert problem["detail"]
    assert ready(host)


def test_it_comes_back_after_kill_9(host: Host) -> None:
    before = unit(host, "MainPID")
    with host.sudo():
        host.check_output(f"kill -9 {before}")
    wait_for("the embedder is back", lambda: unit(host, "MainPID") not in ("0", before) and ready(host), timeout_s=30)
    assert vectors(host, "back again")


def test_more_than_it_admits_is_told_to_come_back(host: Host) -> None:
    statuses = [status for status, _ in ask(host, times=8, input=["word " * 250] * 16)]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    assert ready(host)


def test_the_largest_requests_fit_into_its_memory(host: Host) -> None:
    pid = unit(host, "MainPID")
    # Two megabytes each; one endless word is three tokens, so that only a few texts cost the model time.
    texts = ["word " * 6500] * 6 + ["x" * 32_768] * 58
    assert {status for status, _ in ask(host, times=4, input=texts)} == {200}
    assert unit(host, "MainPID") == pid
    with host.sudo():
        peak_kib = int(host.check_output(f"awk '/^VmHWM:/ {{print $2}}' /proc/{pid}/status"))
    # Local machines have no memory limit of their own; on others the unit's limit would have killed it.
    assert peak_kib < 300 * 1024


def test_only_this_host_can_connect(host: Host) -> None:
    with host.sudo():
        listeners = host.check_output("ss -Hltnp").splitlines()
    assert [line.split()[3] for line in listeners if "8090" in line] == ["127.0.0.1:8090"]


def test_it_runs_with_few_rights(host: Host) -> None:
    with host.sudo():
        status = host.file(f"/proc/{unit(host, 'MainPID')}/status").content_string
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["Uid"].split()[0]) >= 61184  # a dynamic user
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
