"""The environment's certificate authority as pure functions: birth, signing, and why a certificate has to be renewed.

Keys are EC P-256. Everything comes and goes as PEM text; times are aware datetimes in UTC. For the controller only.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
# Clocks of hosts may be a little behind the controller's.
LEEWAY = datetime.timedelta(hours=1)


class PkiError(ValueError):
    """What is wrong with a key or certificate that was handed in, and what to write instead."""


class Stranger(PkiError):
    """The key belongs to none of the certificates."""


class Authority:
    """A CA that signs: its key and its certificate."""

    def __init__(self, key_pem: str, bundle_pem: str) -> None:
        """Find the certificate in the bundle that belongs to the key. Raises PkiError."""
        try:
            key = serialization.load_pem_private_key(key_pem.encode(), password=None)
        except (ValueError, TypeError) as error:
            raise PkiError("the CA's key is not an unencrypted PEM private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PkiError("the CA's key is not an elliptic curve key (make it with ansible/ca.yml)")
        try:
            bundle = x509.load_pem_x509_certificates(bundle_pem.encode())
        except ValueError as error:
            raise PkiError("the CA's certificate is not a PEM certificate") from error
        own = [certificate for certificate in bundle if public_pem(certificate) == public_pem(key)]
        if not own:
            raise Stranger("the CA's key belongs to none of the CA's certificates")
        self.key = key
        self.certificate = own[0]


def authorities(bundle_pem: str) -> int:
    """How many CAs a bundle trusts."""
    return len(x509.load_pem_x509_certificates(bundle_pem.encode()))


def signer(key_pem: str, bundle_pem: str) -> int | None:
    """Which certificate of a bundle, counted from 0, belongs to a key; None for none. Raises PkiError."""
    try:
        own = Authority(key_pem, bundle_pem).certificate
    except Stranger:
        return None
    return x509.load_pem_x509_certificates(bundle_pem.encode()).index(own)


def public_pem(holder: x509.Certificate | x509.CertificateSigningRequest | ec.EllipticCurvePrivateKey) -> bytes:
    """The public key of a certificate, request or private key, comparable."""
    return holder.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def subject(common_name: str) -> x509.Name:
    """A subject that is nothing but a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def general_name(name: str) -> x509.GeneralName:
    """An address or a DNS name as a certificate carries it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def to_pem(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """A certificate or request as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def usage(**allowed: bool) -> x509.KeyUsage:
    """Key usage with only the named ones allowed."""
    names = "content_commitment crl_sign data_encipherment decipher_only digital_signature encipher_only key_agreement"
    return x509.KeyUsage(**dict.fromkeys(f"{names} key_cert_sign key_encipherment".split(), False) | allowed)


def key_text(key: ec.EllipticCurvePrivateKey) -> str:
    """A private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def new_key() -> str:
    """A private key that nobody else has, as PEM."""
    return key_text(ec.generate_private_key(ec.SECP256R1()))


def new_authority(key_pem: str, common_name: str, days: int, now: datetime.datetime) -> str:
    """The certificate of a new CA, signed by itself."""
    key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError("the CA's key is not an elliptic curve key")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject(common_name))
        .issuer_name(subject(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LEEWAY)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return to_pem(certificate)


def sign(
    request_pem: str, common_name: str, names: Sequence[str], authority: Authority, days: int, now: datetime.datetime
) -> str:
    """A certificate for the key of a request, valid for `days` but never longer than the CA.

    Nothing but the key is taken from the request. Raises PkiError if its signature is not the key's own.
    """
    request = x509.load_pem_x509_csr(request_pem.encode())
    if not request.is_signature_valid:
        raise PkiError(f"the request of {common_name} is not signed by its own key")
    end = min(now + datetime.timedelta(days=days), authority.certificate.not_valid_after_utc)
    if end <= now:
        raise PkiError(f"the CA's certificate expired on {end:%Y-%m-%d}; make a new one (roles/certificates/README.md)")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject(common_name))
        .issuer_name(authority.certificate.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LEEWAY)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(USAGES), critical=False)
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return to_pem(certificate)


def why_new(
    certificate_pem: str | None,
    request_pem: str,
    common_name: str,
    names: Sequence[str],
    authority: Authority,
    renew_days: int,
    now: datetime.datetime,
) -> str | None:
    """Why a host's certificate has to be signed anew, in a few words; None if it is good for `renew_days` and more."""
    if certificate_pem is None:
        return "there is none"
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        carried = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound):
        return "it is not one of ours"
    if public_pem(certificate) != public_pem(x509.load_pem_x509_csr(request_pem.encode())):
        return "it belongs to another key"
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return "it is of another CA"
    left = certificate.not_valid_after_utc - now
    if left < datetime.timedelta(days=renew_days) and authority.certificate.not_valid_after_utc - now > left + LEEWAY:
        return f"it expires in {left.days} days" if left.days > 0 else "it expired"
    wanted = {general_name(name) for name in names}
    if set(carried) != wanted or certificate.subject != subject(common_name) or set(usages) != set(USAGES):
        return "its names changed"
    return None


def client_certificate(common_name: str, authority: Authority, now: datetime.datetime) -> tuple[str, str]:
    """A key and a certificate of one day, for a question that the controller asks."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(subject(common_name)).sign(key, hashes.SHA256())
    return key_text(key), sign(to_pem(request), common_name, [common_name], authority, 1, now)
