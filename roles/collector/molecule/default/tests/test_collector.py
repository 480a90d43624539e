"""Every line comes to Loki with its labels, and none is lost on the way: Loki away, collector killed, log rotated."""

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from lib.loki import Loki
from lib.scenario import feed, play
from lib.waiting import wait_for

ACCESS = "/var/log/nginx/access.json"
SOON_S = 30.0
LONG_S = 90.0


@pytest.fixture
def loki(host: Host) -> Loki:
    """Loki, ready."""
    found = Loki(lambda command, text: feed(host, command, text), "https://logs1:3100")
    wait_for("Loki is ready", found.ready, LONG_S)
    return found


@pytest.fixture
def word() -> str:
    """A word that nobody has written before."""
    return secrets.token_hex(5)


def run(host: Host, script: str, unit: str, *arguments: str) -> None:
    """Run a shell script as a service, so that its output has a unit; returns when it has ended."""
    host.check_output(f"systemd-run --quiet --wait --unit {unit} sh -c %s {' '.join(['%s'] * (1 + len(arguments)))}",
                      script, "sh", *arguments)  # fmt: skip


def numbered(word: str, count: int) -> str:
    """A shell script that writes this many lines, each with a number."""
    return f"i=0; while [ $i -lt {count} ]; do echo {word} $i; i=$((i+1)); done"


def arrived(loki: Loki, word: str, count: int, selector: str = '{host="logs1"}') -> list[str]:
    """Wait until so many different lines that begin with the word are there; returns all, doubles included.

    sudo and systemd write the test's own commands down, the word among them.
    """
    seen: list[str] = []

    def enough() -> bool:
        seen[:] = loki.texts(f"{selector} |~ `^({word} |.*request_id.*{word})`")
        return len(set(seen)) >= count

    wait_for(f"{count} lines with {word}", enough, LONG_S, interval_s=0.5)
    return seen


def pid(host: Host, unit: str = "otel-collector") -> str:
    """Main process; 0 for none."""
    return str(host.check_output("systemctl show -p MainPID --value %s", unit))


def test_a_line_arrives_with_its_labels(host: Host, loki: Loki, word: str) -> None:
    host.check_output("logger -t probe -p user.err %s", word)
    found = wait_for("the line", lambda: loki.lines(f'{{host="logs1"}} |~ `^{word}`'), SOON_S)
    labels = found[0].labels
    assert {k: labels[k] for k in ("host", "environment", "level", "identifier")} == {
        "host": "logs1", "environment": "molecule", "level": "error", "identifier": "probe",
    }  # fmt: skip
    assert loki.labels() == {"host", "unit", "level", "environment"}


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("%s", "info"),
        ("ERROR: %s", "error"),
        ("ts=1 level=warn msg=%s", "warn"),
        ('{"level":"warning","event":"%s"}', "warn"),
        ('{"level":"critical","event":"%s"}', "fatal"),
        ('{"level":17,"event":"%s"}', "info"),
        ('{"broken": %s}', "info"),
    ],
)
def test_the_level_is_what_the_writer_said(host: Host, loki: Loki, word: str, line: str, level: str) -> None:
    run(host, 'echo "$1"', f"say-{word}.service", line.replace("%s", word))
    found = wait_for("the line", lambda: loki.lines(f'{{unit="say-{word}.service"}} !~ `systemd`'), SOON_S)
    said = [entry for entry in found if word in entry.text and entry.text == line.replace("%s", word)]
    assert [entry.labels["level"] for entry in said] == [level]


def test_ids_of_a_json_line_are_metadata_and_the_line_is_whole(host: Host, loki: Loki, word: str) -> None:
    trace = secrets.token_hex(16)
    text = json.dumps({"level": "info", "event": "request", "request_id": word, "trace_id": trace, "path": "/v1/x"})
    run(host, 'echo "$1"', "api@1.service", text)
    found = wait_for("by trace id", lambda: loki.lines(f'{{unit="api@1.service"}} | trace_id="{trace}"'), SOON_S)
    assert found[0].text == text and found[0].labels["request_id"] == word and found[0].labels["event"] == "request"


def test_an_id_without_bounds_is_not_taken_over(host: Host, loki: Loki, word: str) -> None:
    text = json.dumps({"event": "x", "request_id": word * 100})
    run(host, 'echo "$1"', "api@1.service", text)
    found = wait_for("the line", lambda: loki.lines(f'{{unit="api@1.service"}} |= `{word}`'), SOON_S)
    assert "request_id" not in found[0].labels


def test_sessions_do_not_make_labels_of_their_own(host: Host, loki: Loki, word: str) -> None:
    host.check_output("systemd-run --quiet --wait sh -c %s", f"echo {word}")
    found = wait_for("the line", lambda: loki.lines(f'{{host="logs1"}} |~ `^{word}`'), SOON_S)
    assert {line.labels["unit"] for line in found} == {"run.service"}


def test_nothing_is_lost_while_loki_is_down_and_the_collector_restarts(host: Host, loki: Loki, word: str) -> None:
    host.check_output("systemctl stop arches-loki")
    try:
        run(host, numbered(word, 1500), "down-a.service")
        host.check_output("systemctl restart otel-collector")
        run(host, numbered(f"{word} b", 1500), "down-b.service")
        assert not host.service("arches-loki").is_running
    finally:
        host.check_output("systemctl start arches-loki")
    wait_for("Loki is ready", loki.ready, LONG_S)
    lines = arrived(loki, word, 3000)
    assert len(lines) == 3000, "nothing twice either"


def test_what_is_written_while_the_collector_is_stopped_comes_later(host: Host, loki: Loki, word: str) -> None:
    host.check_output("systemctl stop otel-collector")
    run(host, numbered(word, 500), "stopped.service")
    host.check_output("systemctl start otel-collector")
    assert len(arrived(loki, word, 500)) == 500


def test_a_killed_collector_loses_nothing(host: Host, loki: Loki, word: str) -> None:
    """Killed in the midst of 300 lines a second, twice."""
    script = f"for s in $(seq 40); do for n in $(seq 75); do echo {word} $s.$n; done; sleep 0.25; done"
    host.check_output("systemd-run --quiet --unit killed.service sh -c %s", script)
    for part in ("8.1", "20.1"):
        wait_for("the writer goes on", lambda p=part: f"{word} {p}" in tail(host, "killed.service"), SOON_S, 0.05)
        before = pid(host)
        host.check_output("systemctl kill -s KILL otel-collector")
        wait_for("another collector", lambda b=before: pid(host) not in ("0", b), SOON_S)
    lines = arrived(loki, word, 3000)
    print(f"killed twice: {len(lines) - 3000} of 3000 lines came twice")
    assert len(lines) - 3000 < 100, "Loki keeps one of two equal lines of the same time"


def tail(host: Host, unit: str) -> str:
    """What a unit has written."""
    return str(host.check_output("journalctl -q -o cat -u %s", unit))


def test_long_lines_and_bytes_that_are_no_text_cost_no_neighbour(host: Host, loki: Loki, word: str) -> None:
    texts = [f"{word} before", f"{word} \xff\xfe\x00 bytes", f"{word} " + "x" * 2**20, f"{word} after"]
    feed(host, "python3 /usr/local/bin/native-log", json.dumps(texts))
    script = f"printf '{word} \\377\\376 raw\\n'; head -c 1048576 /dev/zero | tr '\\0' y; echo; echo {word} last"
    run(host, script, f"rubbish-{word}.service")
    lines = arrived(loki, word, 6)
    lengths = [len(line) for line in lines]
    assert len([line for line in lines if line.endswith(("before", "after", "last"))]) == 3, lengths
    assert (
        max(lengths) == 256 * 1024 and any("raw" in line for line in lines) and any("bytes" in line for line in lines)
    )
    pieces = "".join(loki.texts(f'{{unit="rubbish-{word}.service"}} |~ `^y+$`'))
    assert len(pieces) == 2**20, "journald cuts what comes from a pipe into pieces; all are there"


def request(word: str, number: int, status: int = 200) -> str:
    """A line of the access log."""
    return json.dumps({"request_id": f"{word}-{number}", "status": status, "path": "/v1/x", "seconds": 0.01})


def test_the_access_log_has_levels_and_loses_nothing_when_it_is_rotated(host: Host, loki: Loki, word: str) -> None:
    for part, statuses in enumerate(([200] * 300, [404] * 300, [503] * 300)):
        text = "".join(request(word, part * 1000 + n, status) + "\n" for n, status in enumerate(statuses))
        feed(host, f"cat >> {ACCESS}", text)
        if part < 2:
            # As logrotate does: the writer goes on in the old file until it is told.
            last = request(word, part * 1000 + 999)
            feed(host, f"mv {ACCESS} {ACCESS}.1 && cat >> {ACCESS}.1 && : > {ACCESS}", last + "\n")
            query = f'{{unit="nginx.service"}} | request_id="{word}-{part * 1000 + 999}"'
            wait_for("the old file was read", lambda q=query: loki.texts(q), LONG_S)
    lines = arrived(loki, word, 902, '{unit="nginx.service"}')
    assert len(lines) == 902
    assert len(loki.texts(f'{{unit="nginx.service", level="error"}} |= `{word}`')) == 300
    assert len(loki.texts(f'{{unit="nginx.service", level="warn"}} |= `{word}`')) == 300


def spans(kind: str, count: int, ms: int, **more: Any) -> dict[str, Any]:
    """Traces of one span each, in OTLP; the name says what they are."""
    start = time.time_ns()
    made = [
        {
            "traceId": secrets.token_hex(16), "spanId": secrets.token_hex(8), "name": f"{kind}-{n}.", "kind": 2,
            "startTimeUnixNano": str(start), "endTimeUnixNano": str(start + ms * 1_000_000), **more,
        }
        for n in range(count)
    ]  # fmt: skip
    return {"resourceSpans": [{"scopeSpans": [{"spans": made}]}]}


def test_failed_slow_and_wanted_traces_are_kept_and_a_share_of_the_others(
    host: Host, send: Callable[[dict[str, Any]], None], word: str
) -> None:
    wanted = {"attributes": [{"key": "arches.trace_wanted", "value": {"boolValue": True}}]}
    send(spans(f"{word}-fast", 300, 10))
    send(spans(f"{word}-failed", 20, 10, status={"code": 2}))
    send(spans(f"{word}-slow", 20, 400))
    send(spans(f"{word}-wanted", 20, 10, **wanted))

    def kept(kind: str) -> int:
        return int(host.run(f"grep -aoE '{word}-{kind}-[0-9]+[.]' /run/spans | sort -u | wc -l").stdout)

    wait_for("all that must stay", lambda: [kept(k) for k in ("failed", "slow", "wanted")] == [20, 20, 20], LONG_S)
    assert 5 <= kept("fast") <= 75


@pytest.fixture
def send(host: Host) -> Callable[[dict[str, Any]], None]:
    """Sends spans as a program on the host does."""

    def post(document: dict[str, Any]) -> None:
        curl = "curl -sSf -H content-type:application/json --data-binary @- http://127.0.0.1:4318/v1/traces"
        feed(host, curl, json.dumps(document))

    wait_for("the collector listens", lambda: host.socket("tcp://127.0.0.1:4318").is_listening, SOON_S)
    return post


def test_callers_that_want_every_trace_do_not_get_it(
    host: Host, send: Callable[[dict[str, Any]], None], word: str
) -> None:
    wanted = {"attributes": [{"key": "arches.trace_wanted", "value": {"boolValue": True}}]}
    send(spans(f"{word}-flood", 2000, 10, **wanted))
    send(spans(f"{word}-end", 1, 10, status={"code": 2}))
    wait_for("the judgement", lambda: host.run("grep -a %s /run/spans", f"{word}-end").rc == 0, LONG_S)
    kept = int(host.run(f"grep -aoE '{word}-flood-[0-9]+[.]' /run/spans | sort -u | wc -l").stdout)
    assert 0 < kept < 1000, kept


def test_its_own_metrics_are_on_loopback(host: Host) -> None:
    metrics = host.check_output("curl -sSf http://127.0.0.1:8888/metrics")
    assert "otelcol_exporter_queue_size" in metrics and "otelcol_exporter_queue_capacity" in metrics
    assert not host.socket("tcp://0.0.0.0:8888").is_listening


def test_a_bad_configuration_is_refused_and_the_good_one_goes_on(host: Host) -> None:
    before, good = pid(host), host.file("/etc/otel-collector/config.yml").content_string
    with pytest.raises(AssertionError, match="endpoint"):
        play(variables={"collector_logs_endpoint": "[no, endpoint]"})
    assert host.file("/etc/otel-collector/config.yml").content_string == good and pid(host) == before


def test_a_store_of_another_name_is_not_trusted(host: Host, loki: Loki, word: str) -> None:
    """The last test but for the way back: it leaves other settings for a while."""
    host.check_output("grep -q stranger /etc/hosts || sed -i 's/ logs1$/ logs1 stranger/' /etc/hosts")
    play(variables={"collector_logs_endpoint": "https://stranger:3100/otlp"})
    host.check_output("logger -t probe %s", f"{word} trusted")
    said = "journalctl -q -o cat -u otel-collector -g 'certificate is valid for'"
    wait_for("it says why", lambda: "stranger" in host.run(said).stdout, LONG_S)
    assert loki.texts(f'{{host="logs1"}} |~ `^{word}`') == []
    play()
    arrived(loki, word, 1)
