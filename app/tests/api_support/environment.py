"""Settings of servers under test."""

from arches_api.lib.settings import Settings, load_settings

# Limits that no test reaches unless it says so.
GENEROUS = "100000/1m"

NOWHERE = {
    "ENV": "test",
    "EMBEDDINGS": "hash",
    # Port 9 (discard): nothing answers.
    "DATABASE_URL": "postgres://app@127.0.0.1:9/nothing",
    "DATABASE_CONNECTION_TIMEOUT": "200ms",
    "REDIS_URL": "redis://127.0.0.1:9/0",
    "REDIS_MAX_RETRIES": "0",
    "JWT_SECRET": "tests sign with this and nobody else does",
    "RELEASE": "1.2.3-test",
    "RATE_LIMIT_LOGIN": GENEROUS,
    "RATE_LIMIT_ADDRESS": GENEROUS,
    "RATE_LIMIT_REQUESTS": GENEROUS,
    "API_LAME_DUCK": "0ms",
}


def settings_with(**changes: str) -> Settings:
    """Settings of a server that reaches nothing, changed by environment variables."""
    return load_settings({**NOWHERE, **changes})
