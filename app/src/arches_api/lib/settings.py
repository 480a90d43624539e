"""Settings from the environment, checked once at start.

A value that is missing or wrong raises `SettingsError`, whose text is one line: the variable, what is wrong, what to
write. Values of secrets never appear in it.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
TRACING_ENDPOINT = "http://127.0.0.1:4318/v1/traces"
SIZE_UNITS = {"": 1, "k": 1024, "m": 1024**2}


class SettingsError(Exception):
    """A variable of the environment has no usable value. The text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` events in any `window` seconds."""

    limit: int
    window: float


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """What `python -m arches_api migrate` needs."""

    database_url: str
    role: str | None  # SET ROLE, so that everything made belongs to the owner


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server needs. Durations in seconds, sizes in bytes."""

    env: str
    release: str
    host: str
    port: int
    instance: int
    trusted_hops: int
    body_limit: int
    lame_duck: float
    preflight_requests: int  # a new release proves itself with so many before it serves; 0: it does not
    log_level: str
    database_url: str
    database_max_connections: int
    database_connection_timeout: float
    redis_url: str
    redis_sentinels: tuple[tuple[str, int], ...]
    redis_master_name: str
    redis_sentinel_username: str | None
    redis_sentinel_password: str | None
    redis_ca_file: str | None
    redis_max_retries: int
    redis_pool_size: int
    redis_timeout: float  # of one call, all retries together
    jwt_secrets: tuple[str, ...]  # the first signs, all verify
    jwt_expiry: float
    refresh_token_expiry: float
    refresh_grace: float
    rate_login: Rate
    rate_address: Rate
    rate_requests: Rate
    embeddings: str  # http | hash
    embeddings_url: str
    embeddings_model: str
    embeddings_dimensions: int
    embeddings_key: str | None
    embeddings_retry: float
    search_exact_rows: int
    metrics_enabled: bool
    metrics_host: str
    metrics_port: int  # of this instance
    tracing_enabled: bool
    tracing_endpoint: str


class _Reader:
    """Reads variables one by one; every method raises SettingsError naming the variable."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str | None = None, *, hint: str = "a value") -> str:
        value = self._environ.get(name, "").strip()
        if value:
            return value
        if default is None:
            raise SettingsError(f"{name} is not set: write {hint}")
        return default

    def optional(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def parsed[T](self, name: str, default: str | None, parse: Callable[[str], T], hint: str) -> T:
        """`parse` raises ValueError for a bad value, which is not a secret and is shown."""
        value = self.text(name, default, hint=hint)
        try:
            return parse(value)
        except ValueError:
            raise SettingsError(f"{name} is {value!r}: write {hint}") from None

    def choice(self, name: str, default: str | None, choices: tuple[str, ...]) -> str:
        def parse(value: str) -> str:
            if value not in choices:
                raise ValueError
            return value

        return self.parsed(name, default, parse, "one of " + ", ".join(choices))

    def whole(self, name: str, default: str | None, low: int, high: int) -> int:
        def parse(value: str) -> int:
            number = int(value)
            if not low <= number <= high:
                raise ValueError
            return number

        return self.parsed(name, default, parse, f"a whole number from {low} to {high}")

    def flag(self, name: str, default: str) -> bool:
        return self.choice(name, default, ("true", "false")) == "true"

    def seconds(self, name: str, default: str, low: float, high: float) -> float:
        def parse(value: str) -> float:
            number = parse_duration(value)
            if not low <= number <= high:
                raise ValueError
            return number

        return self.parsed(name, default, parse, f"a duration such as {default}, from {low:g}s to {high:g}s")

    def rate(self, name: str, default: str) -> Rate:
        return self.parsed(name, default, parse_rate, f"a count and a duration such as {default}")

    def size(self, name: str, default: str, low: int, high: int) -> int:
        def parse(value: str) -> int:
            match = re.fullmatch(r"(\d{1,12})([km]?)", value.lower())
            if match is None:
                raise ValueError
            number = int(match[1]) * SIZE_UNITS[match[2]]
            if not low <= number <= high:
                raise ValueError
            return number

        return self.parsed(name, default, parse, f"a size such as {default}, from {low} to {high} bytes")

    def url(self, name: str, schemes: tuple[str, ...], example: str, default: str | None = None) -> str:
        """A URL may hold a password, so a bad one is never shown."""
        value = self.text(name, default, hint=f"a URL such as {example}")
        try:
            parts = urlsplit(value)
            # Several hosts (host1:5432,host2:5432) are Postgres' own extension, which urlsplit's port cannot read.
            named = bool(parts.netloc.rpartition("@")[2] or parse_qs(parts.query).get("host"))
            if "," not in parts.netloc:
                _ = parts.port
        except ValueError:
            named, parts = False, urlsplit("")
        if parts.scheme not in schemes or not named:
            raise SettingsError(f"{name} is not a usable URL: write {' or '.join(schemes)}, such as {example}")
        return value

    def file(self, name: str) -> str | None:
        value = self.optional(name)
        if value is not None and not Path(value).is_file():
            raise SettingsError(f"{name} is {value!r}, which is no file: write the path of a readable file, or nothing")
        return value


def parse_duration(value: str) -> float:
    """Seconds of `250ms`, `30s`, `15m`, `2h` or `7d`. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,9})(ms|s|m|h|d)", value)
    if match is None:
        raise ValueError(value)
    return int(match[1]) * DURATION_UNITS[match[2]]


def parse_rate(value: str) -> Rate:
    """The rate of `30/1m`. Raises ValueError for anything else."""
    count, slash, window = value.partition("/")
    rate = Rate(int(count), parse_duration(window) if slash else 0)
    if rate.limit < 1 or rate.window < 0.001:
        raise ValueError(value)
    return rate


def _parse_address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _parse_sentinels(value: str) -> tuple[tuple[str, int], ...]:
    found = []
    for item in value.split(","):
        host, colon, port = item.strip().rpartition(":")
        if not host or not colon:
            raise ValueError(value)
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


def _jwt_secrets(read: _Reader) -> tuple[str, ...]:
    hint = "at least 32 random characters; several, separated by commas, while one replaces another (the first signs)"
    secrets = tuple(part.strip() for part in read.text("JWT_SECRET", hint=hint).split(","))
    if any(len(secret) < 32 for secret in secrets):
        raise SettingsError(f"JWT_SECRET is too short: write {hint}")
    return secrets


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The server's settings. Raises SettingsError for the first variable that is missing or wrong."""
    read = _Reader(environ)
    env = read.choice("ENV", None, ("local", "test", "staging", "prod", "production"))
    host = read.parsed("API_HOST", "127.0.0.1", _parse_address, "an IP address to listen on, such as 10.0.0.21")
    instance = read.whole("API_INSTANCE", "1", 1, 256)
    embeddings = read.choice("EMBEDDINGS", "http", ("http", "hash"))
    if embeddings == "hash" and env not in ("local", "test"):
        raise SettingsError(f"EMBEDDINGS is 'hash', which knows no meaning, and ENV is {env!r}: write http")
    _check_storage(read)
    return Settings(
        env=env,
        release=read.text("RELEASE", "unknown"),
        host=host,
        port=read.whole("API_PORT", "8080", 0, 65535),
        instance=instance,
        trusted_hops=read.whole("API_TRUSTED_HOPS", "0", 0, 8),
        body_limit=read.size("API_BODY_LIMIT", "1m", 1024, 64 * 1024**2),
        lame_duck=read.seconds("API_LAME_DUCK", "1s", 0, 60),
        preflight_requests=read.whole("API_PREFLIGHT_REQUESTS", "0", 0, 10_000),
        log_level=read.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
        database_url=read.url(
            "DATABASE_URL", ("postgres", "postgresql"), "postgres://app@/arches?host=/run/postgresql&port=6432"
        ),
        database_max_connections=read.whole("DATABASE_MAX_CONNECTIONS", "20", 1, 1000),
        database_connection_timeout=read.seconds("DATABASE_CONNECTION_TIMEOUT", "3s", 0.1, 60),
        redis_url=read.url("REDIS_URL", ("redis", "rediss"), "rediss://app:password@redis:6379/0"),
        redis_sentinels=read.parsed("REDIS_SENTINELS", "-", _parse_sentinels, "host:port, separated by commas")
        if read.optional("REDIS_SENTINELS")
        else (),
        redis_master_name=read.text("REDIS_MASTER_NAME", "arches"),
        redis_sentinel_username=read.optional("REDIS_SENTINEL_USERNAME"),
        redis_sentinel_password=read.optional("REDIS_SENTINEL_PASSWORD"),
        redis_ca_file=read.file("REDIS_CA_FILE"),
        redis_max_retries=read.whole("REDIS_MAX_RETRIES", "3", 0, 20),
        redis_pool_size=read.whole("REDIS_POOL_SIZE", "10", 1, 1000),
        redis_timeout=read.seconds("REDIS_TIMEOUT", "1s", 0.05, 60),
        jwt_secrets=_jwt_secrets(read),
        jwt_expiry=read.seconds("JWT_EXPIRY", "15m", 1, 86400),
        refresh_token_expiry=read.seconds("REFRESH_TOKEN_EXPIRY", "7d", 60, 365 * 86400),
        refresh_grace=read.seconds("REFRESH_TOKEN_GRACE", "5s", 0, 60),
        rate_login=read.rate("RATE_LIMIT_LOGIN", "30/1m"),
        rate_address=read.rate("RATE_LIMIT_ADDRESS", "1200/1m"),
        rate_requests=read.rate("RATE_LIMIT_REQUESTS", "60000/1m"),
        embeddings=embeddings,
        embeddings_url=read.url(
            "EMBEDDINGS_URL", ("http", "https"), "http://127.0.0.1:8090/v1", "http://127.0.0.1:8090/v1"
        ),
        embeddings_model=read.text("EMBEDDINGS_MODEL", "all-MiniLM-L6-v2" if embeddings == "http" else "hash"),
        # The width of the column; another model of another width needs a migration first.
        embeddings_dimensions=read.whole("EMBEDDINGS_DIMENSIONS", "384", 384, 384),
        embeddings_key=read.optional("EMBEDDINGS_KEY"),
        embeddings_retry=read.seconds("EMBEDDINGS_RETRY", "5s", 0.05, 600),
        search_exact_rows=read.whole("SEARCH_EXACT_ROWS", "20000", 0, 10_000_000),
        metrics_enabled=read.flag("METRICS_ENABLED", "true"),
        metrics_host=read.parsed("METRICS_HOST", host, _parse_address, "an IP address, such as 10.0.0.21"),
        metrics_port=read.whole("METRICS_PORT", "9090", 1, 65000) + instance - 1,
        tracing_enabled=read.flag("TRACING_ENABLED", "false"),
        tracing_endpoint=read.url("TRACING_ENDPOINT", ("http", "https"), TRACING_ENDPOINT, TRACING_ENDPOINT),
    )


def _check_storage(read: _Reader) -> None:
    """Nothing stores files yet; what the environment says about it is still checked, as the guide promises."""
    if read.choice("STORAGE_TYPE", "local", ("local", "s3")) == "s3":
        read.text("AWS_BUCKET", hint="the bucket's name, because STORAGE_TYPE is 's3'")
        read.text("AWS_REGION", hint="the bucket's region, because STORAGE_TYPE is 's3'")


def load_migration_settings(environ: Mapping[str, str]) -> MigrationSettings:
    """The migration runner's settings. Raises SettingsError for the first variable that is missing or wrong."""
    read = _Reader(environ)
    role = read.optional("MIGRATION_ROLE")
    if role is not None and re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", role) is None:
        raise SettingsError(f"MIGRATION_ROLE is {role!r}: write the name of the role that owns the tables, or nothing")
    return MigrationSettings(
        database_url=read.url(
            "MIGRATION_DATABASE_URL",
            ("postgres", "postgresql"),
            "postgres://migrator:password@data1:5432,data2:5432/arches?target_session_attrs=primary&sslmode=verify-full",
        ),
        role=role,
    )
