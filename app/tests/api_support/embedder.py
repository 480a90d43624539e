"""A stand-in for an embedding service: OpenAI's protocol over the hashing provider, with faults."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from arches_api.lib.embeddings import HashEmbeddings


class StubEmbedder:
    """`status` other than 200 is answered to every call; while `gate` is not set, calls wait."""

    def __init__(self) -> None:
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[dict[str, Any]] = []
        self._provider = HashEmbeddings(384)
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name: self.headers[name] for name in ("Authorization", "traceparent")}
                headers = {name.lower(): value for name, value in headers.items()}
                stub.calls.append({"path": self.path, **headers, **asked})
                stub.gate.wait(20)
                content = json.dumps(stub.answer(asked["input"])).encode()
                self.send_response(stub.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                return  # a client that gave up

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, texts: list[str]) -> dict[str, Any]:
        """Deliberately not in order: `index` counts."""
        vectors = asyncio.run(self._provider.embed(texts, patience=1))
        return {"data": [{"index": i, "embedding": vectors[i]} for i in reversed(range(len(texts)))]}

    def close(self) -> None:
        """Frees the port."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
