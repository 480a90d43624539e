"""What `make logs` asks and prints."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from typing import Any

import pytest

from lib.plugins import PROJECT, load_script

logs = load_script("logs")
STREAM = {"host": "api1", "unit": "api@1.service", "level": "error", "environment": "local"}


@pytest.mark.parametrize(
    ("query", "host", "unit", "asked"),
    [
        ("", "", "", '{host=~".+"}'),
        ("", "api1", "", '{host="api1"}'),
        ("", "api1", "nginx.service", '{host="api1", unit="nginx.service"}'),
        ("", "", "api", '{unit=~"api(@.*)?[.].*"}'),
        ('{level="error"} |= `x`', "", "", '{level="error"} |= `x`'),
        ('{level="error"} |= `x`', "api1", "", '{host="api1", level="error"} |= `x`'),
        ("{ } |= `x`", "api1", "", '{host="api1"} |= `x`'),
        ("", 'a"}', "", '{host="a\\"}"}'),
    ],
)
def test_host_and_unit_narrow_the_query(query: str, host: str, unit: str, asked: str) -> None:
    assert logs.logql(query, host, unit) == asked


def test_host_cannot_be_put_into_a_query_without_selector() -> None:
    with pytest.raises(logs.Refused, match="begins with its selector"):
        logs.logql('sum(rate({host="a"}[1m]))', "api1", "")


@pytest.mark.parametrize("since", ["", "15", "m", "15m; reboot", "-1h", "15 m"])
def test_a_time_that_is_none_is_refused(since: str) -> None:
    with pytest.raises(logs.Refused, match="such as 15m"):
        logs.curl_settings("https://x", "{}", since, 10)


NASTY = '{host="a"} |= `$(reboot)` |~ "\'; \\\\d" \n"; url = "file:///etc/shadow'


def test_no_query_reaches_a_shell() -> None:
    """The words of the command are the same whatever is asked."""
    _, _, words = logs.store(PROJECT / "inventories/local")
    assert words[-1] == "sudo curl --config -"
    settings = logs.curl_settings("https://x", NASTY, "15m", 10)
    assert len([line for line in settings.splitlines() if line.startswith("data-urlencode")]) == 4
    assert len([line for line in settings.splitlines() if line.startswith("url")]) == 1


def test_curl_itself_reads_back_what_was_asked() -> None:
    """curl is told to send the query to a port where nobody is, and to print the address it would ask."""
    settings = logs.curl_settings("http://127.0.0.1:9", NASTY, "15m", 10)
    settings = "".join(f"{line}\n" for line in settings.splitlines() if not line.startswith(("cacert", "cert", "key")))
    settings = settings.replace("%{http_code}", "%{url_effective}")
    done = subprocess.run(["curl", "--config", "-"], input=settings, capture_output=True, text=True, check=False)
    asked = urllib.parse.parse_qs(urllib.parse.urlsplit(done.stdout.strip().removeprefix("status ")).query)
    assert asked["query"] == [NASTY]


def test_the_store_is_found_in_the_inventory() -> None:
    host, url, _ = logs.store(PROJECT / "inventories/local")
    assert (host, url.startswith("https://"), url.endswith(":3100")) == ("ops1", True, True)


def test_an_environment_without_a_store_says_so() -> None:
    with pytest.raises(logs.Refused, match="there is no Loki"):
        logs.store(PROJECT / "inventories/dev")


def found(*values: tuple[str, str], **labels: str) -> dict[str, Any]:
    """One stream of an answer."""
    return {"stream": {**STREAM, **labels}, "values": list(values)}


def test_lines_of_all_streams_come_newest_last() -> None:
    results = [
        found(("1700000002500000000", "third"), ("1700000000000000000", "first")),
        found(("1700000001000000000", "second"), host="data1", level="info"),
    ]
    assert logs.printed(results) == [
        "2023-11-14 22:13:20.000 api1 api@1.service error first",
        "2023-11-14 22:13:21.000 data1 api@1.service info second",
        "2023-11-14 22:13:22.500 api1 api@1.service error third",
    ]


def test_a_line_cannot_steer_the_terminal() -> None:
    line = logs.printed([found(("1700000000000000000", "a\x1b[2Jb\u009b"))])[0]
    assert "\x1b" not in line and "\u009b" not in line and line.endswith("a\ufffd[2Jb\ufffd")


def test_values_of_a_metric_are_printed() -> None:
    results = [{"metric": {"host": "api1"}, "values": [[1700000000, "12"]]}]
    assert logs.printed(results) == ["2023-11-14 22:13:20.000 host=api1 12"]


def test_lokis_own_words_about_a_bad_query() -> None:
    with pytest.raises(logs.Refused, match="Loki answers 400: parse error at line 1"):
        logs.answer("parse error at line 1, col 3: syntax error\n\nstatus 400")


def test_nothing_found_is_an_empty_list() -> None:
    assert logs.answer(json.dumps({"data": {"result": []}}) + "\nstatus 200") == []


class Asked:
    """Stands for ssh."""

    def __init__(self, output: str, code: int = 0, error: str = "") -> None:
        self.done = subprocess.CompletedProcess([], code, output, error)

    def __call__(self, *_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        """Answer any command."""
        return self.done


EMPTY = json.dumps({"data": {"result": []}}) + "\nstatus 200"


@pytest.mark.parametrize(
    ("ssh", "code", "says"),
    [
        (Asked(EMPTY), 1, 'no lines in the last 5m for {host="api1"}'),
        (Asked("parse error\nstatus 400"), 2, "Loki answers 400: parse error"),
        (Asked("", 255, "no route to host"), 2, "ops1 cannot be asked: no route to host"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(
    ssh: Asked, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs.subprocess, "run", ssh)
    assert logs.main([str(PROJECT / "inventories/local"), "--host", "api1", "--since", "5m"]) == code
    assert capsys.readouterr().err == f"{says}\n"
