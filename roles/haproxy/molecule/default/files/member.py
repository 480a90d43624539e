#!/usr/bin/python3
"""A member as HAProxy sees it: OPTIONS /primary says 200 where /run/leader exists; port 5432 echoes after its name."""

import http.server
import os
import socket
import socketserver
import ssl
import sys
import threading


class Patroni(http.server.BaseHTTPRequestHandler):
    """Patroni's REST interface, one path of it."""

    def do_OPTIONS(self) -> None:
        """Answer 200, 503, or 404 for anything but /primary."""
        leads = 200 if os.path.exists("/run/leader") else 503
        self.send_response(leads if self.path == "/primary" else 404)
        self.end_headers()


class Postgres(socketserver.BaseRequestHandler):
    """Says who it is, then echoes."""

    def handle(self) -> None:
        """Serve one connection."""
        self.request.sendall(f"{socket.gethostname()}\n".encode())
        while data := self.request.recv(100):
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    """Any number of connections."""

    allow_reuse_address = True
    daemon_threads = True


address = sys.argv[1]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/etc/arches/tls/host.crt", "/etc/arches/tls/host.key")
rest = http.server.ThreadingHTTPServer((address, 8008), Patroni)
rest.socket = context.wrap_socket(rest.socket, server_side=True)
threading.Thread(target=rest.serve_forever, daemon=True).start()
Server((address, 5432), Postgres).serve_forever()
