#!/usr/bin/python3
"""Patroni of several members, `name=address` each; what OPTIONS /primary says is in /run/member-<name>."""

import http.server
import ssl
import sys
import threading
import time
from pathlib import Path


class Patroni(http.server.BaseHTTPRequestHandler):
    """One path of Patroni's REST interface."""

    name = ""

    def do_OPTIONS(self) -> None:
        """200 for the leader, 503 for who follows, nothing for who hangs."""
        role = Path(f"/run/member-{self.name}").read_text().strip()
        if role == "hangs":
            time.sleep(60)
        self.send_response(200 if role == "leads" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Several times a second."""


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/etc/arches/tls/host.crt", "/etc/arches/tls/host.key")
for member in sys.argv[1:]:
    name, _, address = member.partition("=")
    server = http.server.ThreadingHTTPServer((address, 8008), type(name, (Patroni,), {"name": name}))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever).start()
