"""The CA's arithmetic: what is signed, and what makes a certificate due."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from lib.plugins import load_plugin

pki = load_plugin("module_utils", "pki")
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
NAMES = ["data1", "postgres", "203.0.113.31"]


def request(key_pem: str) -> str:
    """A signing request as `openssl req -new` makes it."""
    key: Any = serialization.load_pem_private_key(key_pem.encode(), password=None)
    made = x509.CertificateSigningRequestBuilder().subject_name(pki.subject("host")).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def authority(days: int = 3650) -> tuple[Any, str, str]:
    """A new CA with its key and certificate."""
    key = pki.new_key()
    certificate = pki.new_authority(key, "test", days, NOW)
    return pki.Authority(key, certificate), key, certificate


CA, CA_KEY, CA_CERTIFICATE = authority()
REQUEST = request(pki.new_key())
SIGNED = pki.sign(REQUEST, "data1", NAMES, CA, 365, NOW)


def due(days: float = 0, **changes: Any) -> str | None:
    """Why the certificate is due after some days, with some inputs changed."""
    given = {
        "certificate_pem": SIGNED,
        "request_pem": REQUEST,
        "common_name": "data1",
        "names": NAMES,
        "authority": CA,
        "renew_days": 30,
        **changes,
    }
    reason: str | None = pki.why_new(**given, now=NOW + datetime.timedelta(days=days))
    return reason


def test_a_signed_certificate_is_good_for_clients_and_servers_and_no_ca() -> None:
    certificate = x509.load_pem_x509_certificate(SIGNED.encode())
    certificate.verify_directly_issued_by(CA.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["data1", "postgres"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["203.0.113.31"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == list(pki.USAGES)
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc


def test_nothing_is_due_until_thirty_days_before_the_end() -> None:
    assert due(0) is None and due(334.9) is None
    assert due(335.1) == "it expires in 29 days"
    assert due(366) == "it expired"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"certificate_pem": None}, "there is none"),
        ({"certificate_pem": "torn"}, "it is not one of ours"),
        ({"certificate_pem": CA_CERTIFICATE}, "it is not one of ours"),
        ({"names": [*NAMES, "more"]}, "its names changed"),
        ({"names": NAMES[1:]}, "its names changed"),
        ({"common_name": "data2"}, "its names changed"),
        ({"request_pem": request(pki.new_key())}, "it belongs to another key"),
        ({"authority": authority()[0]}, "it is of another CA"),
    ],
)
def test_what_makes_a_certificate_due(changes: dict[str, Any], reason: str) -> None:
    assert due(**changes) == reason


def test_the_order_of_names_does_not_matter() -> None:
    assert due(names=NAMES[::-1]) is None


def test_an_old_ca_stays_known_while_the_new_one_signs() -> None:
    _, new_key, new_certificate = authority()
    bundle = CA_CERTIFICATE + new_certificate
    assert due(authority=pki.Authority(CA_KEY, bundle)) is None
    assert due(authority=pki.Authority(new_key, bundle)) == "it is of another CA"


def test_no_certificate_outlives_its_ca_and_is_not_renewed_in_vain() -> None:
    short, _, _ = authority(days=40)
    signed = pki.sign(REQUEST, "data1", NAMES, short, 365, NOW)
    end = x509.load_pem_x509_certificate(signed.encode()).not_valid_after_utc
    assert end == NOW + datetime.timedelta(days=40)
    assert due(20, certificate_pem=signed, authority=short) is None
    with pytest.raises(pki.PkiError, match="expired on 2026-07-11"):
        pki.sign(REQUEST, "data1", NAMES, short, 365, NOW + datetime.timedelta(days=41))


@pytest.mark.parametrize(
    ("key", "bundle", "message"),
    [
        ("CHANGE-ME", CA_CERTIFICATE, "key is not an unencrypted PEM"),
        (CA_KEY, "CHANGE-ME", "certificate is not a PEM"),
        (pki.new_key(), CA_CERTIFICATE, "belongs to none"),
    ],
)
def test_a_wrong_ca_is_named_without_showing_it(key: str, bundle: str, message: str) -> None:
    with pytest.raises(pki.PkiError, match=message) as error:
        pki.Authority(key, bundle)
    assert key not in str(error.value)
