"""`python -m arches_api serve|migrate|check|openapi`."""

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from . import migrate
from .lib.settings import Settings, SettingsError, load_migration_settings, load_settings

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 not possible now, 2 wrong settings or usage (one line on standard error says which)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except SettingsError as error:
        return _complain(str(error), USAGE_ERROR)
    except migrate.MigrationError as error:
        return _complain(str(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m arches_api", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("serve", help="serve the API until SIGTERM")
    command.set_defaults(run=_serve)
    command = commands.add_parser("migrate", help="bring the database's schema up to this release")
    command.add_argument("what", nargs="?", choices=("apply", "plan", "status"), default="apply")
    command.add_argument("--patience", type=float, default=60, help="seconds to wait for the leader or another runner")
    command.set_defaults(run=_migrate)
    command = commands.add_parser("check", help="are the settings right, and is what the server needs there?")
    command.add_argument("--settings-only", action="store_true", help="connect to nothing")
    command.set_defaults(run=_check)
    command = commands.add_parser("openapi", help="print the OpenAPI document")
    command.set_defaults(run=_openapi)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from .preflight import PreflightFailed
    from .run import serve

    settings = load_settings(os.environ)
    try:
        serve(settings)
    except PreflightFailed as error:
        return _complain(f"{settings.release} does not serve: {error}", 1)
    except OSError as error:
        where = f"{settings.host}:{settings.port}, metrics {settings.metrics_host}:{settings.metrics_port}"
        return _complain(f"cannot listen on {where}: {error}", 1)
    return 0


def _migrate(options: argparse.Namespace) -> int:
    settings = load_migration_settings(os.environ)
    if options.what == "apply":
        done = asyncio.run(migrate.apply(settings, patience=options.patience))
    else:
        done = asyncio.run(migrate.status(settings))
    _print(dataclasses.asdict(done))
    return 0


def _check(options: argparse.Namespace) -> int:
    settings = load_settings(os.environ)
    if options.settings_only:
        _print({"settings": "ok"})
        return 0
    checks = asyncio.run(_readiness(settings))
    _print(checks)
    return 0 if all(state == "ok" for state in checks.values()) else 1


async def _readiness(settings: Settings) -> dict[str, str]:
    from .app import create_services

    services = create_services(settings)
    await services.database.open()
    try:
        return (await services.readiness.check()).checks
    finally:
        await services.embeddings.close()
        await services.redis.close()
        await services.database.close()


def _openapi(options: argparse.Namespace) -> int:
    from .app import create_app
    from .lib.openapi import document

    # The document depends on no setting; these only let the application be built.
    nowhere = {
        "ENV": "test",
        "EMBEDDINGS": "hash",
        "DATABASE_URL": "postgres://nowhere/nothing",
        "REDIS_URL": "redis://nowhere",
        "JWT_SECRET": "no token is ever signed with this",
        "RELEASE": os.environ.get("RELEASE", "unknown"),
    }
    sys.stdout.write(json.dumps(document(create_app(load_settings(nowhere))), indent=2) + "\n")
    return 0


def _print(content: object) -> None:
    """One line of JSON, for playbooks."""
    sys.stdout.write(json.dumps(content) + "\n")


def _complain(reason: str, code: int) -> int:
    sys.stderr.write(" ".join(reason.split()) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
