#!/usr/bin/env python3
"""An upstream whose behaviour a test chooses by a word in /run/upstream-<port>/mode:

ok      answers 200
busy    answers 503 like the API whose pooler is away
break   reads the request and breaks off without an answer
hold    answers only when the mode is another one
Every request that arrives is a line in /run/upstream-<port>/log.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = int(sys.argv[1])
STATE = Path(f"/run/upstream-{PORT}")


def mode() -> str:
    """What a test wants at the moment."""
    return (STATE / "mode").read_text().strip() if (STATE / "mode").exists() else "ok"


class Handler(BaseHTTPRequestHandler):
    """Answers every method alike."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        with (STATE / "log").open("a") as log:
            log.write(f"{self.command} {self.path}\n")
        while (wanted := mode()) == "hold":
            time.sleep(0.05)
        if wanted == "break":
            self.close_connection = True
            return
        status, kind = (200, "application/json") if wanted == "ok" else (503, "application/problem+json")
        content = json.dumps({"port": PORT, "body": body, "headers": dict(self.headers)}).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Served-By", f"api{PORT}")
        if self.path == "/docs":
            self.send_header("Content-Security-Policy", "script-src 'self'")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815 (names of the library)

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """Keeps many waiting connections."""

    request_queue_size = 1024


Server(("127.0.0.1", PORT), Handler).serve_forever()
