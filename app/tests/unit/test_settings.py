"""A bad environment stops the server with one line that names the variable and the fix."""

import pytest
from api_support.environment import NOWHERE, settings_with

from arches_api.__main__ import main
from arches_api.lib.settings import Rate, SettingsError, load_migration_settings, load_settings, parse_duration

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("ENV", "", "write one of local, test"),
        ("ENV", "produktion", "write one of local, test"),
        ("API_PORT", "http", "whole number from 0 to 65535"),
        ("API_PREFLIGHT_REQUESTS", "many", "whole number from 0 to 10000"),
        ("API_PORT", "70000", "whole number from 0 to 65535"),
        ("API_HOST", "edge1", "an IP address"),
        ("API_BODY_LIMIT", "1 MB", "a size such as 1m"),
        ("DATABASE_URL", "", "is not set: write a URL"),
        ("DATABASE_URL", f"mysql://app:{SECRET}@db/arches", "write postgres or postgresql"),
        ("DATABASE_URL", f"postgres://app:{SECRET}@/arches", "write postgres or postgresql"),
        ("DATABASE_URL", f"postgres://app:{SECRET}@db:port/arches", "write postgres or postgresql"),
        ("DATABASE_CONNECTION_TIMEOUT", "3", "a duration such as 3s"),
        ("DATABASE_CONNECTION_TIMEOUT", "3h", "a duration such as 3s"),
        ("REDIS_URL", f"http://:{SECRET}@redis", "write redis or rediss"),
        ("REDIS_SENTINELS", "data1,data2", "host:port, separated by commas"),
        ("REDIS_CA_FILE", "/nowhere/ca.crt", "the path of a readable file"),
        ("JWT_SECRET", "", "is not set: write at least 32 random characters"),
        ("JWT_SECRET", SECRET, "is too short: write at least 32 random characters"),
        ("JWT_EXPIRY", "forever", "a duration such as 15m"),
        ("RATE_LIMIT_LOGIN", "30", "a count and a duration such as 30/1m"),
        ("RATE_LIMIT_LOGIN", "0/1m", "a count and a duration such as 30/1m"),
        ("EMBEDDINGS", "openai", "one of http, hash"),
        ("EMBEDDINGS_URL", "127.0.0.1:8090", "write http or https"),
        ("EMBEDDINGS_DIMENSIONS", "1536", "from 384 to 384"),
        ("STORAGE_TYPE", "s3", "AWS_BUCKET"),
        ("METRICS_ENABLED", "yes", "one of true, false"),
        ("TRACING_ENABLED", "yes", "one of true, false"),
        ("TRACING_ENDPOINT", "127.0.0.1:4318", "write http or https, such as http://127.0.0.1:4318/v1/traces"),
    ],
)
def test_a_bad_value_is_one_line_with_the_variable_and_the_fix(
    name: str, value: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, good in {**NOWHERE, name: value}.items():
        monkeypatch.setenv(variable, good)
    assert main(["serve"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert (name in line or fix == name) and fix in line
    assert SECRET not in line


def test_migrate_names_its_own_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
    assert main(["migrate"]) == 2
    assert "MIGRATION_DATABASE_URL is not set" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="MIGRATION_ROLE"):
        load_migration_settings({"MIGRATION_DATABASE_URL": "postgres://m@db/arches", "MIGRATION_ROLE": 'x"; DROP'})


def test_the_hashing_provider_is_refused_where_people_search() -> None:
    with pytest.raises(SettingsError, match="EMBEDDINGS"):
        load_settings({**NOWHERE, "ENV": "prod"})


def test_guide_and_design_values_are_understood() -> None:
    settings = settings_with(
        DATABASE_URL="postgres://app@/arches?host=/run/postgresql&port=6432",
        REDIS_SENTINELS="10.0.0.31:26379,10.0.0.32:26379,[fd00::3]:26379",
        JWT_SECRET=f"{'new' * 20}, {'old' * 20}",
        REFRESH_TOKEN_EXPIRY="7d",
        API_INSTANCE="3",
    )
    assert settings.redis_sentinels[2] == ("fd00::3", 26379)
    assert settings.jwt_secrets == ("new" * 20, "old" * 20)
    assert settings.refresh_token_expiry == 7 * 86400
    assert settings.metrics_port == 9092
    assert settings_with(RATE_LIMIT_LOGIN="5/30s").rate_login == Rate(5, 30.0)


def test_durations() -> None:
    assert [parse_duration(text) for text in ("250ms", "30s", "15m", "2h", "7d")] == [0.25, 30, 900, 7200, 604800]


def test_several_hosts_are_a_database_url() -> None:
    url = "postgres://migrator:x@data1:5432,data2:5432/arches?target_session_attrs=primary"
    assert load_migration_settings({"MIGRATION_DATABASE_URL": url}).database_url == url
