"""Lines that were taken are there, whatever happens to the process; only who has a certificate gives and asks."""

import json
import secrets
import time

import pytest
from testinfra.host import Host

from lib.loki import TLS, Loki, otlp
from lib.scenario import feed, play
from lib.waiting import wait_for

URL = "https://store:3100"
LABELS = {"host": "a1", "unit": "a.service", "level": "info", "environment": "molecule"}
READY_S = 60.0


@pytest.fixture
def loki(host: Host) -> Loki:
    """Loki, ready."""

    found = Loki(lambda command, text: feed(host, command, text), URL)
    wait_for("Loki is ready", found.ready, READY_S)
    return found


def pid(host: Host) -> str:
    """Process of the running Loki; 0 for none."""
    return str(host.check_output("systemctl show -p MainPID --value arches-loki"))


def test_a_line_is_found_at_once_by_its_labels_and_its_text(loki: Loki) -> None:
    word = secrets.token_hex(4)
    assert loki.push([f"hello {word}"], **LABELS)[0] == 204
    assert loki.texts(f'{{host="a1", unit="a.service"}} |= `{word}`') == [f"hello {word}"]


def test_labels_are_exactly_the_four(loki: Loki) -> None:
    more = {**LABELS, "service.name": "api", "service.instance.id": "1", "pid": "17"}
    word = secrets.token_hex(4)
    assert loki.push([word], **more)[0] == 204
    assert loki.labels() == set(LABELS)
    found = loki.lines(f'{{host="a1"}} | pid="17" |= `{word}`')
    assert [line.labels["service_name"] for line in found] == ["api"], "the others are structured metadata"


def test_without_a_certificate_nothing_is_taken_and_nothing_said(host: Host, loki: Loki) -> None:
    word = secrets.token_hex(4)
    body = json.dumps(otlp([word], time.time(), LABELS))
    push = host.run(
        "printf %%s %s | curl -sS --cacert %s -H content-type:application/json --data-binary @- %s",
        body, f"{TLS}/ca.crt", f"{URL}/otlp/v1/logs",
    )  # fmt: skip
    assert push.rc != 0 and "certificate required" in push.stderr, push
    assert host.run("curl -sS --cacert %s %s/ready", f"{TLS}/ca.crt", URL).rc != 0
    assert loki.texts(f'{{host="a1"}} |= `{word}`') == []


def test_plain_http_and_loopback_are_closed(host: Host) -> None:
    assert host.run("curl -sS http://store:3100/ready").stdout != "ready"
    assert not host.socket("tcp://127.0.0.1:3100").is_listening
    assert host.socket("tcp://127.0.0.1:9095").is_listening
    assert not host.socket("tcp://0.0.0.0:9095").is_listening


def test_a_line_of_a_mebibyte_is_cut_and_costs_no_neighbour(loki: Loki) -> None:
    word = secrets.token_hex(4)
    status, words = loki.push([f"{word} before", f"{word} " + "x" * 2**20, f"{word} after"], **LABELS)
    assert status == 204, words
    texts = loki.texts(f'{{host="a1"}} |= `{word}`')
    assert [len(text) for text in texts] == [15, 256 * 1024, 14]


def test_a_line_that_is_too_old_is_refused_and_costs_no_neighbour(loki: Loki) -> None:
    word = secrets.token_hex(4)
    status, words = loki.push([word], at_s=time.time() - 15 * 86400, **LABELS)
    assert status == 400 and "timestamp too old" in words, words
    assert loki.push([word], at_s=time.time() - 2 * 3600, unit="late.service", host="a1")[0] == 204


def test_lines_of_an_outage_come_in_behind_newer_ones(loki: Loki) -> None:
    word = secrets.token_hex(4)
    late = {**LABELS, "unit": f"{word}.service"}
    assert loki.push([f"{word} now"], **late)[0] == 204
    assert loki.push([f"{word} an hour ago"], at_s=time.time() - 3700, **late)[0] == 204
    assert loki.texts(f'{{unit="{word}.service"}}', since_s=7200) == [f"{word} an hour ago", f"{word} now"]


def test_the_same_line_twice_is_one(loki: Loki) -> None:
    """What a collector sends again after it was killed."""
    word, now = secrets.token_hex(4), time.time()
    for _ in range(2):
        assert loki.push([f"{word} a", f"{word} b"], at_s=now, **LABELS)[0] == 204
    assert loki.texts(f'{{host="a1"}} |= `{word}`') == [f"{word} a", f"{word} b"]


def test_a_killed_loki_has_every_line_it_took(host: Host, loki: Loki) -> None:
    word = secrets.token_hex(4)
    for part in range(4):
        assert loki.push([f"{word} {part} {n}" for n in range(500)], **LABELS)[0] == 204
    before = pid(host)
    host.check_output("systemctl kill -s KILL arches-loki")
    wait_for("another process", lambda: pid(host) not in ("0", before), 30)
    wait_for("Loki is ready", loki.ready, READY_S)
    assert len(set(loki.texts(f'{{host="a1"}} |= `{word}`'))) == 2000


def test_a_bad_query_is_answered_in_words(loki: Loki) -> None:
    with pytest.raises(AssertionError, match="400: parse error"):
        loki.ask("/loki/api/v1/query_range", query="{host=")


def test_a_bad_configuration_is_refused_and_the_good_one_goes_on(host: Host, loki: Loki) -> None:
    before, good = pid(host), host.file("/etc/arches-loki/config.yml").content_string
    with pytest.raises(AssertionError, match="no_such_key"):
        play(variables={"loki_certificate": "/etc/arches/tls/host.crt\n    no_such_key: 1"})
    assert host.file("/etc/arches-loki/config.yml").content_string == good
    assert pid(host) == before and loki.ready()


def test_memory_is_bounded(host: Host) -> None:
    environment = host.check_output("systemctl show -p Environment --value arches-loki")
    assert "GOMEMLIMIT=435MiB" in environment.split()
