"""`make silence`: what is asked becomes one command, and what makes no sense is refused with the word to write."""

from pathlib import Path

import pytest

from lib.plugins import PROJECT, load_script

silence = load_script("silence")
AMTOOL = ["amtool", "--alertmanager.url=http://127.0.0.1:9093"]


def asked(**environ: str) -> list[str]:
    """The command without its program."""
    command: list[str] = silence.request(environ, 9093, "me")
    assert command[:2] == AMTOOL
    return command[2:]


def test_an_alert_of_a_host_is_silenced_for_a_time() -> None:
    assert asked(ALERT="HostDown", HOST="data1", FOR="1h", COMMENT="a; rm -rf /") == [
        "silence", "add", "--duration=1h", "--comment=a; rm -rf /", "--author=me",
        "alertname=HostDown", "host=data1",
    ]  # fmt: skip


def test_nothing_lists_and_an_id_expires() -> None:
    assert asked() == ["silence", "query"]
    known = "0e8e1f3a-8a3c-4e39-9f1a-0d2f1c1b9a77"
    assert asked(EXPIRE=known) == ["silence", "expire", known]


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"HOST": "data1"}, "ALERT is not set"),
        ({"ALERT": "HostDwn", "FOR": "1h", "COMMENT": "x"}, "which no rule has"),
        ({"ALERT": "HostDown", "COMMENT": "x"}, "FOR is not a time"),
        ({"ALERT": "HostDown", "FOR": "soon", "COMMENT": "x"}, "FOR is not a time"),
        ({"ALERT": "HostDown", "FOR": "1h"}, "COMMENT is not set"),
        ({"EXPIRE": "it"}, "EXPIRE is not the id"),
    ],
)
def test_what_makes_no_sense_is_refused(environ: dict[str, str], says: str) -> None:
    with pytest.raises(silence.Refused, match=says):
        asked(**environ)


def test_every_alert_that_has_a_page_can_be_named() -> None:
    pages = [page.stem for page in Path(PROJECT, "docs", "runbooks").glob("[A-Z]*.md") if page.stem != "README"]
    assert pages
    for page in pages:
        assert asked(ALERT=page, FOR="1m", COMMENT="x")
