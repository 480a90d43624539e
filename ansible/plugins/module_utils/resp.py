"""A small Redis client for modules: RESP2 over TLS with the standard library. Speaks to Redis and to Sentinel."""

from __future__ import annotations

import contextlib
import socket
import ssl
import typing as t

Reply = t.Union[str, int, None, "list[Reply]"]


class ReplyError(Exception):
    """The server understood and said no; the text is the server's own."""


class ConnectError(Exception):
    """No conversation came about. `refused` tells a closed port from silence and from a failed handshake."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Connection:
    """One logged-in connection. Use it as a context manager."""

    def __init__(
        self, address: str, port: int, ca_file: str, user: str, passwords: t.Sequence[str], timeout: float = 3.0
    ) -> None:
        """Connect, verify the certificate against the address, log in with the first password that is accepted.

        `timeout` is in seconds and holds for every single step. Raises ConnectError.
        """
        self.name = f"{address}:{port}"
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ConnectError(f"{ca_file}: {error.strerror or error}") from error
        try:
            plain = socket.create_connection((address, port), timeout)
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            raise ConnectError(f"{self.name} does not answer: {error.strerror or error}", refused) from error
        try:
            self._socket = context.wrap_socket(plain, server_hostname=address)
        except OSError as error:
            plain.close()
            raise ConnectError(f"{self.name}: TLS failed: {error}") from error
        self._stream = self._socket.makefile("rb")
        self._log_in(user, passwords)

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()
            self._socket.close()

    def certificate(self) -> bytes:
        """The certificate that the server shows, as DER."""
        return self._socket.getpeercert(binary_form=True) or b""

    def call(self, *words: str | int) -> Reply:
        """Send one command and return its reply. Raises ReplyError, or ConnectError when the connection broke."""
        encoded = [str(word).encode() for word in words]
        command = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
        try:
            self._socket.sendall(command)
            return self._read()
        except OSError as error:
            raise ConnectError(f"{self.name} broke off: {error}") from error

    def table(self, *words: str | int) -> dict[str, str]:
        """Like `call`, for replies that list a name and a value in turn."""
        reply = self.call(*words)
        items = [str(item) for item in reply] if isinstance(reply, list) else []
        return dict(zip(items[::2], items[1::2], strict=True))

    def _log_in(self, user: str, passwords: t.Sequence[str]) -> None:
        said = "no password was given"
        for password in passwords:
            try:
                self.call("AUTH", user, password)
                return
            except ReplyError as error:
                said = str(error)
        self.__exit__()
        raise ConnectError(
            f"{self.name} refuses the login of {user!r}: {said} "
            f"(after a change of passwords the old ones have to be tried for one run)"
        )

    def _read(self) -> Reply:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the connection was closed")
        kind, text = line[:1], line[1:-2].decode()
        if kind == b"+":
            return text
        if kind == b"-":
            raise ReplyError(text)
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == "-1" else self._stream.read(int(text) + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return None if text == "-1" else [self._read() for _ in range(int(text))]
        raise ConnectionResetError(f"the server speaks no RESP2: {line[:20]!r}")
