"""Certificates as services use them: handshakes in which both sides verify, and what is refused."""

from __future__ import annotations

import json

import pytest

TLS = "/etc/arches/tls"

# Server and client in one process, both with the host's certificate; prints what each side saw of the other.
HANDSHAKE = """
import socket, ssl, sys, threading
name, ca = sys.argv[1:3]
def context(purpose):
    made = ssl.create_default_context(purpose, cafile=ca)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_cert_chain("/etc/arches/tls/host.crt", "/etc/arches/tls/host.key")
    return made
listener = socket.create_server(("127.0.0.1", 0))
def serve():
    with context(ssl.Purpose.CLIENT_AUTH).wrap_socket(listener.accept()[0], server_side=True) as peer:
        peer.sendall(peer.getpeercert()["subject"][0][0][1].encode())
threading.Thread(target=serve, daemon=True).start()
connection = socket.create_connection(listener.getsockname(), 5)
with context(ssl.Purpose.SERVER_AUTH).wrap_socket(connection, server_hostname=name) as peer:
    print(peer.recv(100).decode())
"""


def handshake(host, name: str, groups: str = "ssl-cert", ca: str = f"{TLS}/ca.crt"):
    """Run the handshake on the host as nobody with the given groups; the server is addressed by `name`."""
    return host.run(
        "setpriv --reuid nobody --regid nogroup --groups %s python3 -c %s %s %s", groups, HANDSHAKE, name, ca
    )


def test_both_sides_verify_by_name_and_by_address(host):
    own = host.backend.get_hostname()
    address = host.ansible.get_variables()["ansible_host"]
    for name in (own, "extra", address):
        done = handshake(host, name)
        assert done.rc == 0, done.stderr
        assert done.stdout.strip() == own


@pytest.mark.parametrize("name", ["postgres", "other", "127.0.0.1"])
def test_a_name_that_is_not_on_the_certificate_any_more_is_refused(host, name):
    done = handshake(host, name)
    assert done.rc != 0 and "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_another_ca_is_refused(host):
    done = handshake(host, "extra", ca="/etc/ssl/certs/ca-certificates.crt")
    assert done.rc != 0 and "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_only_the_group_reads_the_key(host):
    done = handshake(host, "extra", groups="nogroup")
    assert done.rc != 0 and "PermissionError" in done.stderr
    key = host.file(f"{TLS}/host.key")
    assert (key.user, key.group, key.mode) == ("root", "ssl-cert", 0o640)


def test_every_certificate_has_a_key_of_its_own(host):
    shown = [host.check_output("openssl x509 -in %s -noout -pubkey", f"{TLS}/{name}.crt") for name in ("host", "edge")]
    made = [host.check_output("openssl pkey -in %s -pubout", f"{TLS}/{name}.key") for name in ("host", "edge")]
    assert shown == made and shown[0] != shown[1]
    assert "P-256" in host.check_output("openssl pkey -in %s -noout -text", f"{TLS}/host.key")


def test_readers_of_a_replaced_certificate_owe_their_action(host):
    """The scenario replaced the certificate that prepare.yml had signed; a first certificate leaves no marker."""
    assert json.loads(host.file("/var/lib/arches/pending/toy").content_string) == ["reload"]
