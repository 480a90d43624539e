"""Stands in for Grafana: reads grafana.ini as Grafana does, and answers over TLS with what it understood."""

import configparser
import http.server
import json
import pathlib
import re
import ssl

PROVISIONING = pathlib.Path("/etc/grafana/provisioning")


def expanded(value: str) -> str:
    """A value with every `$__file{path}` replaced by the file's content."""
    return re.sub(r"\$__file\{([^}]+)\}", lambda match: pathlib.Path(match[1]).read_text().strip(), value)


parser = configparser.ConfigParser(interpolation=None, comment_prefixes=(";", "#"))
parser.read("/etc/grafana/grafana.ini")
SETTINGS = {section: {key: expanded(value) for key, value in parser[section].items()} for section in parser.sections()}
# Fails, as Grafana would, where a file that a data source names cannot be read.
SOURCES = expanded((PROVISIONING / "datasources/arches.yml").read_text())
HOME = json.loads(pathlib.Path(SETTINGS["dashboards"]["default_home_dashboard_path"]).read_text())["uid"]


class Page(http.server.BaseHTTPRequestHandler):
    """One page."""

    def do_GET(self) -> None:
        """Answer with the settings and the data sources."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"settings": SETTINGS, "sources": SOURCES, "home": HOME}).encode())


server = SETTINGS["server"]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(server["cert_file"], server["cert_key"])
web = http.server.ThreadingHTTPServer((server["http_addr"], int(server["http_port"])), Page)
web.socket = context.wrap_socket(web.socket, server_side=True)
web.serve_forever()
