"""A metrics gateway that asks its clients for a certificate; one module answers, another is away."""

import http.server
import ssl
import sys


class Gateway(http.server.BaseHTTPRequestHandler):
    """Answers /proxy?module=toy."""

    def do_GET(self) -> None:
        """A number, or an error."""
        found = self.path == "/proxy?module=toy"
        self.send_response(200 if found else 502)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        if found:
            self.wfile.write(b"toy_height 3\ntoy_noise_total 1\n")


server = http.server.ThreadingHTTPServer((sys.argv[1], 9998), Gateway)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="/etc/arches/tls/ca.crt")
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain("/etc/arches/tls/host.crt", "/etc/arches/tls/host.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
