#!/usr/bin/python3
"""Takes spans as Jaeger does, from clients with a certificate, and appends what came, unpacked, to /run/spans."""

import gzip
import http.server
import ssl
import sys


class Spans(http.server.BaseHTTPRequestHandler):
    """OTLP over HTTP, one path of it."""

    def do_POST(self) -> None:
        """Keep the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("/run/spans", "ab") as file:
            file.write(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="/etc/arches/tls/ca.crt")
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain("/etc/arches/tls/host.crt", "/etc/arches/tls/host.key")
server = http.server.ThreadingHTTPServer((sys.argv[1], 4320), Spans)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
