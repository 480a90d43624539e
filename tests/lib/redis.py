"""Redis of a running fleet, asked on a host of it as its administrator."""

from lib.fleet import Fleet

CLIENT = "redis-cli --tls --cacert /etc/arches/tls/ca.crt --user admin --no-auth-warning"


def redis(fleet: Fleet, host: str, *commands: str) -> list[str]:
    """What the Redis of a host answers to commands, line by line; errors are answers, too."""
    secret = (fleet.state / "secrets" / "redis_admin").read_text().strip()
    ask = f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; {CLIENT}"
    answers = fleet.ssh(host, ask, stdin="\n".join([secret, *commands, ""])).stdout.splitlines()
    assert "NOAUTH Authentication required." not in answers, f"{host} does not know the administrator"
    return answers
