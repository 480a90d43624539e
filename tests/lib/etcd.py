"""etcd of a running fleet, asked on one of its members."""

from lib.fleet import Fleet


def etcd(fleet: Fleet, host: str, command: str) -> str:
    """What a shell command with etcdctl prints on a host: as its member, with all members to ask."""
    port = fleet.services["etcd_client"]["port"]
    members = ",".join(f"https://{fleet.address(member)}:{port}" for member in fleet.groups["data"])
    settings = (
        "set -a; . /etc/default/etcd; ETCDCTL_CACERT=$ETCD_TRUSTED_CA_FILE ETCDCTL_CERT=$ETCD_CERT_FILE"
        f" ETCDCTL_KEY=$ETCD_KEY_FILE ETCDCTL_ENDPOINTS={members}"
    )
    return fleet.ssh(host, f"{settings}; {command}").stdout.strip()
