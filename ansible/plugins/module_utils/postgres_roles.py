"""Roles, database and rights of a PostgreSQL cluster: what is missing, as a list of statements.

Reads the catalogs through a plain `query` function and changes nothing itself. Names come from the role's own
variables; they are quoted all the same.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import typing as t
from collections.abc import Callable, Iterator, Mapping, Sequence

Query = Callable[[str, Sequence[t.Any]], list[tuple[t.Any, ...]]]

SCRAM_ITERATIONS = 4096


class Statement(t.NamedTuple):
    """One statement; `shown` is what may be printed."""

    sql: str
    shown: str


def plain(sql: str) -> Statement:
    """A statement without a secret."""
    return Statement(sql, sql)


def name(identifier: str) -> str:
    """A quoted identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A quoted string (standard_conforming_strings)."""
    return "'" + value.replace("'", "''") + "'"


def scram_verifier(password: str, salt: bytes | None = None, iterations: int = SCRAM_ITERATIONS) -> str:
    """What PostgreSQL stores for a password, so that the password itself never reaches the server or its log."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{parts[0]}${parts[1]}:{parts[2]}"


def is_password(password: str, verifier: str | None) -> bool:
    """Whether a stored verifier is that of this password."""
    method, _, rest = (verifier or "").partition("$")
    if method != "SCRAM-SHA-256":
        return False
    iterations, _, salt = rest.partition("$")[0].partition(":")
    return hmac.compare_digest(scram_verifier(password, base64.b64decode(salt), int(iterations)), verifier or "")


def role_statements(query: Query, roles: Mapping[str, Mapping[str, t.Any]]) -> Iterator[Statement]:
    """What makes roles, passwords, memberships and settings so. A role without a password cannot log in."""
    found = {
        row[0]: row[1:]
        for row in query(
            "SELECT rolname, rolcanlogin, rolpassword,"
            " rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls FROM pg_authid",
            [],
        )
    }
    for role, wanted in roles.items():
        password = wanted.get("password")
        login, stored, powerful = found.get(role, (None, None, False))
        if login is None:
            yield plain(f"CREATE ROLE {name(role)}")
        if login is not (password is not None):
            yield plain(f"ALTER ROLE {name(role)} {'NOLOGIN' if password is None else 'LOGIN'}")
        if powerful:
            yield plain(f"ALTER ROLE {name(role)} NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS")
        if password is not None and not is_password(password, stored):
            statement = f"ALTER ROLE {name(role)} PASSWORD "
            yield Statement(statement + literal(scram_verifier(password)), statement + "(not shown)")
        yield from membership_statements(query, role, wanted.get("member_of", []))
        yield from setting_statements(query, role, wanted.get("settings", {}))


def membership_statements(query: Query, role: str, groups: Sequence[str]) -> Iterator[Statement]:
    """Memberships that are missing."""
    rows = query(
        "SELECT pg_get_userbyid(roleid) FROM pg_auth_members WHERE pg_get_userbyid(member) = %s",
        [role],
    )
    for group in groups:
        if (group,) not in rows:
            yield plain(f"GRANT {name(group)} TO {name(role)}")


def setting_statements(query: Query, role: str, settings: Mapping[str, str]) -> Iterator[Statement]:
    """Settings of a role that differ; a setting that is not wanted is reset."""
    rows = query(
        "SELECT s.setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
        " WHERE r.rolname = %s AND s.setdatabase = 0",
        [role],
    )
    live = dict(entry.split("=", 1) for entry in (rows[0][0] if rows else []))
    for key, value in settings.items():
        if live.get(key) != value:
            yield plain(f"ALTER ROLE {name(role)} SET {key} = {literal(value)}")
    for key in live.keys() - settings.keys():
        yield plain(f"ALTER ROLE {name(role)} RESET {key}")


def database_statements(query: Query, database: str, owner: str, connect: Sequence[str]) -> Iterator[Statement]:
    """The database itself, and who may connect: nobody else."""
    rows = query("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [database])
    if not rows:
        yield plain(f"CREATE DATABASE {name(database)} OWNER {name(owner)}")
    elif rows[0][0] != owner:
        yield plain(f"ALTER DATABASE {name(database)} OWNER TO {name(owner)}")
    granted = {
        row[0]
        for row in query(
            "SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END"
            " FROM pg_database, aclexplode(COALESCE(datacl, acldefault('d', datdba)))"
            " WHERE datname = %s AND privilege_type IN ('CONNECT', 'TEMPORARY')",
            [database],
        )
    }
    if not rows or "PUBLIC" in granted:
        yield plain(f"REVOKE ALL ON DATABASE {name(database)} FROM PUBLIC")
    for role in connect:
        if role not in granted:
            yield plain(f"GRANT CONNECT ON DATABASE {name(database)} TO {name(role)}")


# What the application may do with what the owner creates; also with temporary tables of its own: nothing.
WRITER_RIGHTS = {
    "r": ("TABLES", ["DELETE", "INSERT", "SELECT", "UPDATE"]),
    "S": ("SEQUENCES", ["SELECT", "USAGE"]),
}


def content_statements(query: Query, owner: str, writer: str, extensions: Sequence[str]) -> Iterator[Statement]:
    """Extensions and default rights inside the database that `query` is connected to."""
    present = {row[0] for row in query("SELECT extname FROM pg_extension", [])}
    for extension in extensions:
        if extension not in present:
            yield plain(f"CREATE EXTENSION {name(extension)}")
    rows = query(
        "SELECT defaclobjtype::text, privilege_type FROM pg_default_acl, aclexplode(defaclacl)"
        " WHERE pg_get_userbyid(defaclrole) = %s AND pg_get_userbyid(grantee) = %s"
        " AND defaclnamespace = 'public'::regnamespace",
        [owner, writer],
    )
    for kind, (objects, rights) in WRITER_RIGHTS.items():
        if sorted(right for found, right in rows if found == kind) != rights:
            yield plain(
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {name(owner)} IN SCHEMA public"
                f" GRANT {', '.join(rights)} ON {objects} TO {name(writer)}"
            )
