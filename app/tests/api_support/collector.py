"""A stand-in for the collector of a host: takes OTLP over HTTP and keeps the spans."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lib.waiting import wait_for


class StubCollector:
    """While `gate` is not set, it takes connections and answers nothing."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.spans: list[dict[str, Any]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.gate.wait(20)
                if self.path == "/v1/traces":
                    stub.spans += read_spans(body)
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                return  # an exporter that gave up

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def trace(self, trace_id: str, *, count: int = 1) -> list[dict[str, Any]]:
        """The spans of one trace, as soon as there are `count`."""

        def spans() -> list[dict[str, Any]]:
            found = [span for span in self.spans if span["trace"] == trace_id]
            return found if len(found) >= count else []

        return wait_for(f"{count} spans of {trace_id}", spans, 15)

    def close(self) -> None:
        """Frees the port."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


def read_spans(body: bytes) -> list[dict[str, Any]]:
    """The spans of one export: ids in hexadecimal, attributes and those of the resource as dictionaries."""
    content = ExportTraceServiceRequest.FromString(body)
    return [
        {
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "name": span.name,
            "kind": span.kind,
            "status": span.status.code,
            "attributes": {item.key: _value(item.value) for item in span.attributes},
            "resource": {item.key: _value(item.value) for item in resource.resource.attributes},
            "all": str(span),
        }
        for resource in content.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
