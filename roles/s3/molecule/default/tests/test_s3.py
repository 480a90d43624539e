"""A store whose clients can lose nothing: what they delete or overwrite stays, whatever happens to the process."""

import functools
import http.client
import json
import os
import secrets
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from testinfra.host import Host

from lib.scenario import PROJECT, play
from lib.waiting import wait_for

CA = f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/ca.crt"
PORT, ADMIN_PORT = 7070, 7071
STORE, SMALL = "/var/lib/versitygw/store", "/srv/small"
CONVERGE = PROJECT / "molecule/converge.yml"
FIGURES = "/var/lib/prometheus/node-exporter/s3.prom"
MIB = 2**20
READY_S = 30.0
# As the scenario's molecule.yml says.
ROOT = ("root-of-the-store", "not-a-secret-root")
WRITER = ("writer", "not-a-secret-writer")
READER = ("reader", "not-a-secret-reader")
Apply = Callable[..., dict[str, int]]
ACCOUNTS: list[dict[str, str]] = [
    {"access_key": WRITER[0], "secret_key": WRITER[1], "bucket": "backups", "rights": "write"},
    {"access_key": READER[0], "secret_key": READER[1], "bucket": "backups", "rights": "read"},
]


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    return str(host.ansible.get_variables()["ansible_host"])


@pytest.fixture(scope="module")
def client(address: str) -> Callable[..., Any]:
    """Makes an account's client; nothing is tried twice."""

    @functools.cache
    def make(access_key: str, secret_key: str, port: int = PORT) -> Any:
        return boto3.client(
            "s3", endpoint_url=f"https://{address}:{port}", region_name="local", verify=CA,
            aws_access_key_id=access_key, aws_secret_access_key=secret_key,
            config=Config(
                signature_version="s3v4", s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=30,
                retries={"total_max_attempts": 1},
            ),
        )  # fmt: skip

    return make


@pytest.fixture
def root(client: Callable[..., Any]) -> Any:
    return client(*ROOT)


@pytest.fixture
def writer(client: Callable[..., Any]) -> Any:
    return client(*WRITER)


@pytest.fixture
def reader(client: Callable[..., Any]) -> Any:
    return client(*READER)


@pytest.fixture
def key() -> str:
    """A key that no other test knows."""
    return f"test/{secrets.token_hex(8)}"


@pytest.fixture
def apply() -> Iterator[Apply]:
    """Applies the role with other inputs; afterwards the scenario's own count again."""
    yield lambda **variables: play(variables=variables)
    play()


def put(client: Any, key: str, body: bytes) -> str:
    """Write an object of the bucket `backups`; its version."""
    return str(client.put_object(Bucket="backups", Key=key, Body=body)["VersionId"])


def get(client: Any, key: str, **options: str) -> bytes:
    """Read an object of the bucket `backups`."""
    return bytes(client.get_object(Bucket="backups", Key=key, **options)["Body"].read())


def delete(client: Any, key: str) -> str:
    """Delete a key of the bucket `backups`; the version of the marker."""
    return str(client.delete_object(Bucket="backups", Key=key)["VersionId"])


def versions(root: Any, key: str) -> set[str]:
    """Versions and markers that a key has."""
    found = root.list_object_versions(Bucket="backups", Prefix=key)
    return {entry["VersionId"] for entry in found.get("Versions", []) + found.get("DeleteMarkers", [])}


def refusal(call: Callable[[], Any]) -> str:
    """The store's own word for why it refuses a call."""
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def pid(host: Host) -> str:
    """Process of the running gateway; 0 for none."""
    return str(host.check_output("systemctl show -p MainPID --value arches-versitygw"))


def answers(address: str) -> bool:
    """Whether the gateway says that it is well."""
    connection = http.client.HTTPSConnection(address, PORT, timeout=5, context=ssl.create_default_context(cafile=CA))
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def prune(host: Host) -> Any:
    """Run the prune job to its end."""
    return host.run("systemctl start arches-s3-prune.service")


def age(host: Host, key: str, version: str, days: float, store: str = STORE) -> None:
    """Make one version of a key that many days old; the times of the files are those of the versions."""
    found = host.check_output(
        "cd %s; for file in objects/backups/%s $(find versions/backups -name %s); do "
        "getfattr --only-values -n user.version-id $file 2>/dev/null | grep -qx %s && echo $file; done",
        store, key, version, version,
    )  # fmt: skip
    assert len(found.split()) == 1, f"{version} of {key}: {found!r}"
    host.check_output("touch -d %s %s", f"@{time.time() - days * 86400:.0f}", f"{store}/{found}")


# What the accounts may do.


def test_who_writes_reads_lists_and_deletes(writer: Any, key: str) -> None:
    first, second = put(writer, key, b"one"), put(writer, key, b"two")
    assert get(writer, key) == b"two"
    listed = writer.list_objects_v2(Bucket="backups", Prefix=key)["Contents"]
    assert [entry["Key"] for entry in listed] == [key]
    delete(writer, key)
    assert refusal(lambda: get(writer, key)) == "NoSuchKey"
    assert [get(writer, key, VersionId=version) for version in (first, second)] == [b"one", b"two"]


def test_who_writes_uploads_in_parts(writer: Any, key: str) -> None:
    upload = {"Bucket": "backups", "Key": key}
    upload["UploadId"] = writer.create_multipart_upload(**upload)["UploadId"]
    parts = [os.urandom(5 * MIB), b"end"]
    tags = [
        {"PartNumber": n, "ETag": writer.upload_part(**upload, PartNumber=n, Body=part)["ETag"]}
        for n, part in enumerate(parts, start=1)
    ]
    assert len(writer.list_parts(**upload)["Parts"]) == 2
    writer.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags})
    assert get(writer, key) == b"".join(parts)
    other = writer.create_multipart_upload(Bucket="backups", Key=key)["UploadId"]
    writer.abort_multipart_upload(Bucket="backups", Key=key, UploadId=other)
    assert "Uploads" not in writer.list_multipart_uploads(Bucket="backups", Prefix=key)


def test_a_checksum_behind_the_body_costs_the_next_request_nothing(writer: Any, key: str) -> None:
    """The way of boto3's defaults; with connections kept open one of twenty next requests is refused."""
    assert writer.meta.config.request_checksum_calculation == "when_supported"
    for n in range(100):
        put(writer, key, str(n).encode())
        assert get(writer, key) == str(n).encode()


BUCKET = {"Bucket": "backups"}
EVERYTHING = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow", "Principal": {"AWS": ["writer"]}, "Action": "s3:*",
            "Resource": ["arn:aws:s3:::backups", "arn:aws:s3:::backups/*"],
        }
    ],
}  # fmt: skip
# Everything that could destroy what was written, or take the means to prevent it away: call and its parameters, with
# the key and its version where the call is about one.
DESTRUCTIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "a version": ("delete_object", {"Key": "KEY", "VersionId": "VERSION"}),
    "the version without a name": ("delete_object", {"Key": "KEY", "VersionId": "null"}),
    "versioning": ("put_bucket_versioning", {"VersioningConfiguration": {"Status": "Suspended"}}),
    "the policy": ("delete_bucket_policy", {}),
    "the policy by another": ("put_bucket_policy", {"Policy": json.dumps(EVERYTHING)}),
    "rights by a list": ("put_bucket_acl", {"ACL": "public-read-write"}),
    "ownership": (
        "put_bucket_ownership_controls",
        {"OwnershipControls": {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}},
    ),
    "locks": ("put_object_lock_configuration", {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}}),
    "the bucket": ("delete_bucket", {}),
}  # fmt: skip


@pytest.mark.parametrize("what", DESTRUCTIVE)
def test_who_writes_can_not_destroy(root: Any, writer: Any, key: str, what: str) -> None:
    before = [put(writer, key, b"one"), put(writer, key, b"two")]
    call, given = DESTRUCTIVE[what]
    meant = {"KEY": key, "VERSION": before[0]}
    given = BUCKET | {name: meant.get(str(value), value) for name, value in given.items()}
    assert refusal(lambda: getattr(writer, call)(**given)) == "AccessDenied"
    assert versions(root, key) == set(before)
    assert root.get_bucket_versioning(**BUCKET)["Status"] == "Enabled"


def test_who_writes_can_not_destroy_versions_in_bulk(root: Any, writer: Any, key: str) -> None:
    before = [put(writer, key, b"one"), put(writer, key, b"two")]
    doomed = [{"Key": key, "VersionId": version} for version in before]
    answer = writer.delete_objects(Bucket="backups", Delete={"Objects": doomed})
    assert [error["Code"] for error in answer["Errors"]] == ["AccessDenied"] * 2 and "Deleted" not in answer
    assert versions(root, key) == set(before)


def test_who_reads_sees_everything_and_changes_nothing(root: Any, writer: Any, reader: Any, key: str) -> None:
    before = [put(writer, key, b"one"), put(writer, key, b"two")]
    it = {"Bucket": "backups", "Key": key}
    assert get(reader, key) == b"two" and get(reader, key, VersionId=before[0]) == b"one"
    assert reader.list_objects_v2(Bucket="backups", Prefix=key)["KeyCount"] == 1
    for call in (
        lambda: reader.put_object(**it, Body=b"three"),
        lambda: reader.delete_object(**it),
        lambda: reader.delete_object(**it, VersionId=before[0]),
        lambda: reader.copy_object(**it, CopySource={**it, "VersionId": before[0]}),
        lambda: reader.create_multipart_upload(**it),
        lambda: reader.delete_bucket_policy(Bucket="backups"),
    ):
        assert refusal(call) == "AccessDenied"
    assert versions(root, key) == set(before)


def test_accounts_see_one_bucket_and_make_none(writer: Any, reader: Any) -> None:
    for account in (writer, reader):
        assert refusal(functools.partial(account.list_objects_v2, Bucket="other")) == "AccessDenied"
        assert refusal(functools.partial(account.put_object, Bucket="other", Key="a", Body=b"")) == "AccessDenied"
        assert refusal(functools.partial(account.create_bucket, Bucket="mine")) == "AccessDenied"


def test_strangers_are_refused(client: Callable[..., Any]) -> None:
    assert refusal(lambda: get(client(WRITER[0], "wrong"), "a")) == "SignatureDoesNotMatch"
    assert refusal(lambda: get(client("nobody", "wrong"), "a")) == "InvalidAccessKeyId"


def test_only_verified_tls_and_only_the_store_on_the_network(
    host: Host, address: str, client: Callable[..., Any]
) -> None:
    with socket.create_connection((address, PORT), 5) as plain:
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/1.1 200")
    assert not host.socket(f"tcp://127.0.0.1:{PORT}").is_listening
    assert host.socket(f"tcp://127.0.0.1:{ADMIN_PORT}").is_listening
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, ADMIN_PORT), 5)


def test_accounts_come_from_git_only(host: Host, client: Callable[..., Any]) -> None:
    """Not even root's keys make one: the gateway can not write the file."""
    made = host.run(
        "versitygw admin --access %s --secret %s --region local --endpoint-url https://127.0.0.1:%s --allow-insecure "
        "create-user --access intruder --secret intruder --role admin",
        *ROOT, str(ADMIN_PORT),
    )  # fmt: skip
    assert made.rc != 0 and "read-only" in host.check_output("journalctl -u arches-versitygw -n 5"), made
    assert refusal(lambda: client("intruder", "intruder").list_buckets()) == "InvalidAccessKeyId"


def test_secrets_are_for_root_and_the_gateway(host: Host) -> None:
    for path, secret in (("environment", ROOT[1]), ("accounts/users.json", WRITER[1])):
        file = host.file(f"/etc/arches-versitygw/{path}")
        assert secret in file.content_string
        assert host.run("setpriv --reuid nobody --clear-groups cat %s", file.path).rc != 0


# What happens to the process, the disk and the certificate.


def half_an_upload(host: Host, client: Any, address: str, key: str, body: bytes) -> None:
    """Send the first half of an object, kill the gateway, try to send the rest."""
    url = client.generate_presigned_url("put_object", {"Bucket": "backups", "Key": key})
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPSConnection(address, PORT, timeout=20, context=ssl.create_default_context(cafile=CA))
    connection.putrequest("PUT", f"{target.path}?{target.query}")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[: len(body) // 2])
    host.check_output("systemctl kill -s KILL arches-versitygw")

    def rest() -> None:
        connection.send(body[len(body) // 2 :])
        connection.getresponse()

    with pytest.raises((OSError, http.client.HTTPException)):
        rest()
    connection.close()


def test_killed_in_the_middle_of_an_upload(host: Host, address: str, root: Any, writer: Any, key: str) -> None:
    before, started = put(writer, key, b"acknowledged"), pid(host)
    files = f"find {STORE} -type f -size +1M"
    rest = host.check_output(files)
    body = os.urandom(32 * MIB)
    half_an_upload(host, writer, address, key, body)
    wait_for("another process answers", lambda: pid(host) not in ("0", started) and answers(address), READY_S)
    assert get(writer, key) == b"acknowledged" and versions(root, key) == {before}
    assert host.check_output(files) == rest, "half an object stays on the disk"
    put(writer, key, body)
    assert get(writer, key) == body


def test_a_restart_loses_nothing(host: Host, address: str, writer: Any, key: str) -> None:
    body = os.urandom(MIB)
    put(writer, key, body)
    host.check_output("systemctl restart arches-versitygw")
    wait_for("the gateway answers", lambda: answers(address), READY_S)
    assert get(writer, key) == body


def test_a_renewed_certificate_is_taken_over_without_a_restart(host: Host, address: str, writer: Any, key: str) -> None:
    def shown(port: int) -> str:
        where = f"{address if port == PORT else '127.0.0.1'}:{port}"
        asked = "openssl s_client -connect %s </dev/null 2>/dev/null | openssl x509 -noout -serial"
        return str(host.check_output(asked, where))

    put(writer, key, b"before")
    started, before = pid(host), shown(PORT)
    play(Path(__file__).parents[1] / "renew.yml")
    on_disk = host.check_output("openssl x509 -noout -serial -in /etc/arches/tls/host.crt")
    assert on_disk != before
    wait_for("both ports show it", lambda: {shown(PORT), shown(ADMIN_PORT)} == {on_disk}, READY_S)
    assert pid(host) == started and get(writer, key) == b"before"


def test_a_store_from_another_host_is_readable(host: Host, address: str, writer: Any, key: str) -> None:
    """A kept volume, whose files belong to a number that means nobody here."""
    put(writer, key, b"kept")
    host.check_output("systemctl stop arches-versitygw && chown -R 54321:54321 %s/objects %s/versions", STORE, STORE)
    host.check_output("systemctl start arches-versitygw")
    wait_for("the gateway answers", lambda: answers(address), READY_S)
    assert get(writer, key) == b"kept"
    put(writer, key, b"written again")


@pytest.fixture
def small(host: Host) -> Any:
    """The store on a volume of its own with room for little."""
    host.check_output("mkdir -p %s && mount -t tmpfs -o size=24m,mode=0755 tmpfs %s", SMALL, SMALL)
    play(variables={"s3_store": SMALL})
    yield
    play()
    host.check_output("umount %s", SMALL)


@pytest.mark.usefixtures("small")
def test_a_full_disk_says_so_and_costs_nothing_that_was_taken(host: Host, root: Any, writer: Any, key: str) -> None:
    body = os.urandom(8 * MIB)
    version = put(writer, key, body)
    with pytest.raises(ClientError, match="No space left on device") as caught:
        put(writer, key, os.urandom(20 * MIB))
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 507
    assert get(writer, key) == body and versions(root, key) == {version}
    # Deleting needs room for the version that stays: the prune job, which removes versions for good, does not.
    age(host, key, delete(writer, key), 15, SMALL)
    age(host, key, version, 40, SMALL)
    host.run("dd if=/dev/zero of=%s/rest bs=64k", SMALL)
    assert prune(host).rc == 0
    assert versions(root, key) == set()
    put(writer, key, body)
    assert get(writer, key) == body


# What a run of the role does.


def test_accounts_follow_at_once_without_a_restart_and_buckets_stay(
    host: Host, client: Callable[..., Any], root: Any, writer: Any, reader: Any, apply: Apply, key: str
) -> None:
    """One has another secret, one is not wanted any more; then nothing is."""
    put(writer, key, b"x")
    started = pid(host)
    apply(s3_accounts=[{**ACCOUNTS[0], "secret_key": "not-a-secret-other"}])
    assert refusal(lambda: get(writer, key)) == "SignatureDoesNotMatch"
    assert get(client(WRITER[0], "not-a-secret-other"), key) == b"x"
    assert refusal(lambda: get(reader, key)) == "InvalidAccessKeyId"
    assert READER[0] not in root.get_bucket_policy(Bucket="backups")["Policy"]
    apply(s3_buckets=[], s3_accounts=[])
    assert refusal(lambda: get(writer, key)) == "InvalidAccessKeyId"
    assert get(root, key) == b"x"
    assert pid(host) == started


def test_what_somebody_changed_by_hand_is_put_right(root: Any, writer: Any, key: str) -> None:
    root.put_bucket_versioning(Bucket="backups", VersioningConfiguration={"Status": "Suspended"})
    root.delete_bucket_policy(Bucket="backups")
    assert play(CONVERGE, None, "--check") == {"store": 1}
    assert root.get_bucket_versioning(Bucket="backups")["Status"] == "Suspended", "a check changed it"
    assert play() == {"store": 1}
    first = put(writer, key, b"one")
    put(writer, key, b"two")
    assert get(writer, key, VersionId=first) == b"one"


def test_roots_keys_are_changed(client: Callable[..., Any], root: Any, writer: Any, apply: Apply, key: str) -> None:
    put(writer, key, b"x")
    changed = {"s3_root_access_key": "another-root", "s3_root_secret_key": "not-a-secret-another"}
    assert play(CONVERGE, changed, "--check")["store"] > 0
    apply(**changed)
    assert refusal(lambda: get(root, key)) == "InvalidAccessKeyId"
    assert get(client(*changed.values()), key) == b"x"


@pytest.mark.parametrize(
    ("accounts", "says"),
    [
        ([{**ACCOUNTS[0], "bucket": "backup"}], "s3_accounts: the bucket backup is not in s3_buckets"),
        ([{**ACCOUNTS[0], "access_key": ROOT[0]}], "two accounts have the same access key"),
    ],
)
def test_accounts_that_make_no_sense_are_refused(
    accounts: list[dict[str, str]], says: str, writer: Any, key: str
) -> None:
    with pytest.raises(AssertionError, match=says):
        play(variables={"s3_accounts": accounts})
    put(writer, key, b"nothing was changed")


# What the prune job removes.


def test_what_was_deleted_long_ago_goes_and_nothing_else(host: Host, root: Any, writer: Any, key: str) -> None:
    long_ago, lately, rewritten, kept = (f"{key}/{n}" for n in range(4))
    days: dict[str, dict[str, float]] = {
        # Deleted 15 days ago, and 13 days ago though older: the bucket keeps what was deleted for 14 days.
        long_ago: {put(writer, long_ago, b"x"): 16, delete(writer, long_ago): 15},
        lately: {put(writer, lately, b"x"): 100, delete(writer, lately): 13},
        # Overwritten 90 and 2 days ago.
        rewritten: {
            put(writer, rewritten, b"1"): 100, put(writer, rewritten, b"2"): 90, put(writer, rewritten, b"3"): 2,
        },
        kept: {put(writer, kept, b"x"): 1000},
    }  # fmt: skip
    for name, each in days.items():
        for version, old in each.items():
            age(host, name, version, old)
    assert prune(host).rc == 0
    stay = {name: set(each) for name, each in days.items()}
    stay[long_ago] = set()
    stay[rewritten].remove(next(iter(days[rewritten])))
    assert {name: versions(root, name) for name in days} == stay
    assert get(writer, kept) == b"x" and get(writer, rewritten) == b"3"


def test_uploads_that_nobody_finished_go(host: Host, writer: Any, key: str) -> None:
    old, new = [writer.create_multipart_upload(Bucket="backups", Key=key)["UploadId"] for _ in range(2)]
    host.check_output("touch -d '3 days ago' $(find %s/objects/backups/.sgwtmp -name %s)", STORE, old)
    assert prune(host).rc == 0
    left = writer.list_multipart_uploads(Bucket="backups", Prefix=key)["Uploads"]
    assert [upload["UploadId"] for upload in left] == [new]
    writer.abort_multipart_upload(Bucket="backups", Key=key, UploadId=new)


def figures(host: Host) -> dict[str, float]:
    """What the node exporter is told."""
    lines = host.file(FIGURES).content_string.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_figures_tell_the_last_success_and_what_is_stored(host: Host, root: Any, writer: Any, key: str) -> None:
    assert prune(host).rc == 0
    before = figures(host)
    current, older = (f'arches_s3_bucket_bytes{{bucket="backups",state="{state}"}}' for state in ("current", "older"))
    put(writer, key, bytes(3000))
    put(writer, key, bytes(500))
    started = time.time()
    assert prune(host).rc == 0
    after = figures(host)
    assert after[current] - before[current] == 500 and after[older] - before[older] == 3000
    assert after["arches_s3_prune_last_success_timestamp_seconds"] >= int(started)
    assert after["arches_s3_free_bytes"] > 0


def test_a_prune_that_fails_says_why_and_keeps_the_last_success(host: Host, address: str) -> None:
    assert prune(host).rc == 0
    before = host.file(FIGURES).content_string
    host.check_output("systemctl stop arches-versitygw")
    try:
        assert prune(host).rc != 0
        said = host.check_output("journalctl -u arches-s3-prune -n 20 -o cat")
        assert f"arches-s3-prune: https://{address}:{PORT}: Could not connect" in said and "Traceback" not in said
        assert host.file(FIGURES).content_string == before
    finally:
        host.check_output("systemctl start arches-versitygw")
        wait_for("the gateway answers", lambda: answers(address), READY_S)


def test_the_prune_job_runs_by_itself(host: Host) -> None:
    assert host.check_output("systemctl show -p ActiveState --value arches-s3-prune.timer") == "active"
    due = host.check_output("systemctl list-timers arches-s3-prune.timer --output json")
    assert '"next":0' not in due and "arches-s3-prune.service" in due
