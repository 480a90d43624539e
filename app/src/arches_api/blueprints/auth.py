"""Registration, login, refresh, and who am I."""

import re
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field
from quart import Blueprint, Response
from quart_schema import operation_id, tag_blueprint

from ..lib.access import authenticated, caller_group, limited_by_address
from ..lib.database import Connection
from ..lib.http import Input, Line, Output, Text, answers, body, reply
from ..lib.idempotency import Once, idempotent
from ..lib.passwords import COMMON
from ..lib.problems import Problem
from ..lib.services import services
from ..lib.tokens import Principal, new_refresh_token, refresh_token_hash
from ..models import sessions, users

blueprint = Blueprint("auth", __name__, url_prefix="/v1")
tag_blueprint(blueprint, ["Accounts"])

EMAIL = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)+")


def _email(value: str) -> str:
    value = value.strip().lower()
    if EMAIL.fullmatch(value) is None:
        raise ValueError("must be an e-mail address")
    return value


def _new_password(value: str) -> str:
    if value.lower() in COMMON:
        raise ValueError("is one of the passwords that everybody tries first")
    return value


Email = Annotated[Line, Field(max_length=254, examples=["ada@example.org"]), AfterValidator(_email)]


class Registration(Input):
    """A new account."""

    email: Email
    password: Annotated[Text, Field(min_length=8, max_length=256), AfterValidator(_new_password)]
    name: Annotated[Line, Field(min_length=1, max_length=200)]


class Login(Input):
    """E-mail and password."""

    email: Email
    password: Annotated[Text, Field(max_length=256)]


class Refresh(Input):
    """A refresh token; it works once."""

    refresh_token: Annotated[Text, Field(min_length=20, max_length=200)]


class Account(Output):
    """A person, with the personal organization that owns what they store."""

    id: UUID
    email: str
    name: str
    organization_id: UUID


class Tokens(Output):
    """`expires_in` is the access token's lifetime in seconds."""

    access_token: str
    refresh_token: str
    token_type: str = "Bearer"  # noqa: S105 (a type, not a secret)
    expires_in: int


@blueprint.post("/auth/register")
@operation_id("register")
@answers(Account, 201, 400, 409, 413, 415, 422, 429, 503, 504)
@limited_by_address
@idempotent
@body(Registration)
async def register(once: Once, body: Registration) -> Response:
    """Open an account."""
    password_hash = await services().passwords.hash(body.password)

    async def create(connection: Connection) -> Response:
        user = await users.create(connection, email=body.email, name=body.name, password_hash=password_hash)
        return reply(_account(user), 201)

    try:
        # Nobody is logged in: the key belongs to the address that registers, wherever the second try comes from.
        return await once(body.email, body, create)
    except users.EmailTaken:
        raise Problem(409, "email-taken", "E-mail taken", "There is an account with this address: log in.") from None


@blueprint.post("/auth/login")
@operation_id("login")
@answers(Tokens, 200, 400, 401, 413, 415, 422, 429, 503)
@limited_by_address
@body(Login)
async def login(body: Login) -> Response:
    """Get an access token and a refresh token."""
    await services().limits.check(services().login_limit, f"{caller_group()} {body.email}")
    async with services().database.transaction() as connection:
        found = await users.credentials(connection, body.email)
    # An unknown address takes as long as a wrong password, and gets the same answer.
    if not await services().passwords.verify(found.password_hash if found else None, body.password) or found is None:
        raise Problem(401, "wrong-credentials", "Wrong credentials", "E-mail or password is wrong.")
    rehashed = None
    if services().passwords.needs_rehash(found.password_hash):
        rehashed = await services().passwords.hash(body.password)
    refresh_token = new_refresh_token()
    async with services().database.transaction() as connection:
        if rehashed is not None:
            await users.set_password_hash(connection, found.user.id, rehashed)
        lifetime = services().settings.refresh_token_expiry
        await sessions.start(connection, found.user.id, refresh_token_hash(refresh_token), lifetime)
    return _tokens(Principal(found.user.id, found.user.organization_id), refresh_token)


@blueprint.post("/auth/refresh")
@operation_id("refresh")
@answers(Tokens, 200, 400, 401, 409, 413, 415, 422, 429, 503)
@limited_by_address
@body(Refresh)
async def refresh(body: Refresh) -> Response:
    """Exchange a refresh token for a new pair.

    The old token is void afterwards. Of several requests at once one wins and the others get 409; whoever presents
    it later ends the session, because then somebody has a copy.
    """
    refresh_token = new_refresh_token()
    async with services().database.transaction() as connection:
        outcome = await sessions.rotate(
            connection,
            refresh_token_hash(body.refresh_token),
            refresh_token_hash(refresh_token),
            services().settings.refresh_grace,
        )
    if outcome is sessions.Refusal.JUST_USED:
        raise Problem(409, "just-refreshed", "Just refreshed", "Another request used this token: take its answer.")
    if isinstance(outcome, sessions.Refusal):
        raise Problem(401, "invalid-refresh-token", "Invalid refresh token", "Log in again.")
    return _tokens(outcome, refresh_token)


@blueprint.get("/me")
@operation_id("me")
@answers(Account, 200, 401, 429, 503)
@authenticated
async def me(principal: Principal) -> Response:
    """Who the access token belongs to."""
    async with services().database.transaction() as connection:
        user = await users.get(connection, principal.user_id)
    if user is None:
        raise Problem(401, "unauthorized", "Unauthorized", "This account is gone.")
    return reply(_account(user))


def _account(user: users.User) -> Account:
    return Account(id=user.id, email=user.email, name=user.name, organization_id=user.organization_id)


def _tokens(principal: Principal, refresh_token: str) -> Response:
    tokens = services().tokens
    content = Tokens(access_token=tokens.issue(principal), refresh_token=refresh_token, expires_in=tokens.lifetime)
    return reply(content, headers={"Cache-Control": "no-store"})
