"""Access tokens (signed, short-lived) and refresh tokens (opaque, stored as a hash)."""

import hashlib
import secrets
import time
from dataclasses import dataclass
from uuid import UUID, uuid4

import jwt

ISSUER = "arches"
AUDIENCE = "arches-api"
ALGORITHMS = ["HS256"]  # the only ones ever accepted, whatever a token's header says
REQUIRED = ["exp", "iat", "sub", "jti", "iss", "aud", "org", "use"]


class InvalidToken(Exception):
    """The token is not one of ours, or its time is over."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, and for which organization."""

    user_id: UUID
    organization_id: UUID


class AccessTokens:
    """Signs with the first secret; verifies with all, chosen by `kid`, so that secrets can be replaced."""

    def __init__(self, signing_secrets: tuple[str, ...], lifetime: float) -> None:
        """`lifetime` in seconds."""
        self.lifetime = int(lifetime)
        self._keys = {_key_id(secret): secret for secret in signing_secrets}
        self._signing_id = _key_id(signing_secrets[0])

    def issue(self, principal: Principal) -> str:
        """A token for the caller, good for `lifetime` seconds."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(principal.user_id),
            "org": str(principal.organization_id),
            "use": "access",
            "jti": uuid4().hex,
            "iat": now,
            "exp": now + self.lifetime,
        }
        return jwt.encode(
            claims, self._keys[self._signing_id], algorithm=ALGORITHMS[0], headers={"kid": self._signing_id}
        )

    def verify(self, token: str) -> Principal:
        """Who the token speaks for. Raises InvalidToken."""
        try:
            key = self._keys[str(jwt.get_unverified_header(token).get("kid"))]
            claims = jwt.decode(
                token, key, algorithms=ALGORITHMS, audience=AUDIENCE, issuer=ISSUER, options={"require": REQUIRED}
            )
            if claims["use"] != "access":
                raise InvalidToken("not an access token")
            return Principal(UUID(claims["sub"]), UUID(claims["org"]))
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidToken(type(error).__name__) from error


def new_refresh_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def refresh_token_hash(token: str) -> bytes:
    """What is stored of it: the token is random, so a plain digest is enough."""
    return hashlib.sha256(token.encode()).digest()


def _key_id(secret: str) -> str:
    return hashlib.sha256(b"arches key id:" + secret.encode()).hexdigest()[:8]
