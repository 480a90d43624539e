"""A small JSON client over verified TLS, for services of the fleet that speak HTTP (etcd, Patroni, the API)."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import json
import socket
import ssl
import typing as t
import urllib.parse


class NoAnswer(Exception):
    """Nobody answered in time. `refused` tells a host that runs, but without the service, from a silent one."""

    def __init__(self, url: str, reason: str, refused: bool = False) -> None:
        super().__init__(f"{url}: {reason}")
        self.refused = refused


class Response(t.NamedTuple):
    """Status and decoded body; a body that is not JSON stays text."""

    status: int
    body: t.Any
    headers: t.Mapping[str, str]


def tls_context(ca: str, cert: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """Trust in one CA, and our own certificate for services that want one. Raises OSError for a missing file."""
    context = ssl.create_default_context(cafile=ca)
    if cert:
        context.load_cert_chain(cert, key)
    return context


def ask(
    url: str,
    *,
    context: ssl.SSLContext | None = None,
    method: str = "GET",
    body: t.Any = None,
    auth: tuple[str, str] | None = None,
    bearer: str = "",
    address: str = "",
    timeout: float = 2.0,
) -> Response:
    """One request; any status is an answer. `timeout` is in seconds. Raises NoAnswer.

    `bearer` is a token for the Authorization header. `address` is connected to instead of what DNS says of the URL's
    name; the name is verified all the same.
    """
    parts = urllib.parse.urlsplit(url)
    headers = {"Content-Type": "application/json"}
    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    try:
        if address and context:
            plain = socket.create_connection((address, port or 443), timeout)
            connection.sock = context.wrap_socket(plain, server_hostname=host)
        connection.request(method, parts.path or "/", None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except ConnectionRefusedError:
        raise NoAnswer(url, "nothing listens there", refused=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(url, str(error) or type(error).__name__) from None
    finally:
        connection.close()
    try:
        decoded = json.loads(text) if text else None
    except ValueError:
        decoded = text
    return Response(answer.status, decoded, {name.lower(): value for name, value in answer.getheaders()})


def in_parallel[Key, Answer](
    question: t.Callable[[Key], Answer], keys: t.Iterable[Key]
) -> dict[Key, Answer | NoAnswer]:
    """Ask the same of several at once: the answers, or why there is none."""

    def guarded(key: Key) -> Answer | NoAnswer:
        try:
            return question(key)
        except NoAnswer as reason:
            return reason

    wanted = list(keys)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(wanted))) as pool:
        return dict(zip(wanted, pool.map(guarded, wanted), strict=True))
