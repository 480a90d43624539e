"""The Redis client of the modules reads every kind of reply and says why a conversation failed."""

import io
import socket

import pytest

import resp


def reading(data: bytes) -> resp.Connection:
    """A connection whose server has said this."""
    connection = resp.Connection.__new__(resp.Connection)
    connection._stream = io.BytesIO(data)  # type: ignore[assignment]
    return connection


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"+OK\r\n", "OK"),
        (b":-7\r\n", -7),
        (b"$5\r\na\r\nbc\r\n", "a\r\nbc"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", ["a", [1]]),
    ],
)
def test_replies(data: bytes, reply: resp.Reply) -> None:
    assert reading(data)._read() == reply


def test_refusal_of_the_server_is_told_from_a_broken_connection() -> None:
    with pytest.raises(resp.ReplyError, match="NOPERM"):
        reading(b"-NOPERM no\r\n")._read()
    with pytest.raises(ConnectionResetError):
        reading(b"+half")._read()
    with pytest.raises(ConnectionResetError, match="no RESP2"):
        reading(b"HTTP/1.1 400\r\n")._read()


def test_closed_port_is_told_from_silence(tmp_path: object) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(resp.ConnectError) as error:
            resp.Connection("127.0.0.1", unused.getsockname()[1], None, "admin", ["x"], timeout=1)  # type: ignore[arg-type]
    assert error.value.refused
    with pytest.raises(resp.ConnectError, match="no-such-ca") as error:
        resp.Connection("127.0.0.1", 1, "/no-such-ca", "admin", ["x"])
    assert not error.value.refused
