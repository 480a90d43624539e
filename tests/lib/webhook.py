"""A receiver of Alertmanager's notifications: remembers what came, and when."""

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

# A notification of this alert is answered 500: so a drill shows what happens when a receiver refuses.
REFUSED = "DrillRefused"


@dataclass(frozen=True)
class Notification:
    """One alert in one notification. Times are seconds since the epoch; ``path`` is the receiver's."""

    at: float
    path: str
    status: str
    fingerprint: str
    starts_at: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def alert(self) -> str:
        """Name of the alert."""
        return self.labels.get("alertname", "")


def parse(path: str, body: bytes, at: float) -> list[Notification]:
    """The alerts of one webhook request.

    :raises ValueError: when the body is none of Alertmanager's webhook.
    """
    try:
        document: dict[str, Any] = json.loads(body)
        return [
            Notification(
                at=at,
                path=path,
                status=alert["status"],
                fingerprint=alert["fingerprint"],
                starts_at=datetime.fromisoformat(alert["startsAt"]).timestamp(),
                labels=dict(alert["labels"]),
            )
            for alert in document["alerts"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no notification of Alertmanager: {error!r}") from error


class Webhook:
    """An HTTP server for notifications while the ``with`` block lasts.

    :param url: where it listens; the path is ignored, each request's own is remembered.
    :param limit: notifications that are kept; the oldest are forgotten and counted in ``forgotten``.
    :param body_limit: bytes of a request; a larger one is answered 413.
    """

    def __init__(self, url: str, limit: int = 20_000, body_limit: int = 2**20) -> None:
        parts = urlsplit(url)
        self._notifications: deque[Notification] = deque(maxlen=limit)
        self._lock = threading.Lock()
        self.body_limit = body_limit
        self.forgotten = 0
        self._server = ThreadingHTTPServer((parts.hostname or "", parts.port or 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Address and port it listens on."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def record(self, notifications: list[Notification]) -> None:
        """Remember what one request brought."""
        with self._lock:
            room = (self._notifications.maxlen or 0) - len(self._notifications)
            self.forgotten += max(0, len(notifications) - room)
            self._notifications.extend(notifications)

    def notifications(self) -> list[Notification]:
        """Everything that came, oldest first."""
        with self._lock:
            return list(self._notifications)

    def fired(self, alert: str, since: float, labels: Mapping[str, str] | None = None) -> Notification | None:
        """The first notification of an alert that began to fire after ``since`` and carries these labels."""
        wanted = (labels or {}).items()
        return next(
            (
                n
                for n in self.notifications()
                if n.alert == alert and n.status == "firing" and n.starts_at >= since and wanted <= n.labels.items()
            ),
            None,
        )

    def last(self, fingerprint: str) -> Notification | None:
        """The newest notification of one alert instance."""
        return next((n for n in reversed(self.notifications()) if n.fingerprint == fingerprint), None)


def _handler(webhook: Webhook) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        # A sender that falls silent holds no thread for longer.
        timeout = 10

        def do_POST(self) -> None:
            self._answer(self._receive())

        def _receive(self) -> int:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit():
                return 411
            if int(length) > webhook.body_limit:
                return 413
            try:
                notifications = parse(self.path, self.rfile.read(int(length)), time.time())
            except ValueError:
                return 400
            webhook.record(notifications)
            return 500 if any(n.alert == REFUSED and n.status == "firing" for n in notifications) else 200

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the tests say what is missing."""

    return Handler
