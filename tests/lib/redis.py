"""Redis of a running fleet, asked on a host of it as its administrator."""

from lib.fleet import Fleet

CLIENT = "redis-cli --tls --cacert /etc/arches/tls/ca.crt --user admin --no-auth-warning"


def redis(fleet: Fleet, host: str, *commands: str) -> list[str]:
    """What the Redis of a host answers to commands, line by line; errors are answers, too."""
    secret = fleet.variables[host]["vault_redis_admin_password"]
    ask = f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; {CLIENT}"
    return fleet.ssh(host, ask, stdin="\n".join([str(secret), *commands, ""])).stdout.splitlines()
