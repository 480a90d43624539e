"""Make a bucket, and keep its versioning and its policy as git says. A bucket is never deleted.

    - name: The bucket of the backups
      s3_bucket:
        name: backups
        versioned: true
        policy: {Version: "2012-10-17", Statement: [...]}   # left out: only root gets in
        endpoint: https://192.0.2.41:7070
        region: local
        ca_file: /etc/arches/tls/ca.crt
        access_key: root
        secret_key: ...

Needs boto3 on the host. amazon.aws.s3_bucket does the same, with six warnings per bucket and run about what versitygw
does not know.

Result: changed, diff.
"""

from __future__ import annotations

import json
import typing as t

from ansible.module_utils.basic import AnsibleModule

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    boto3 = None

State = dict[str, t.Any]


def code_of(error: t.Any) -> str:
    """What the store calls an error: NoSuchBucketPolicy, or a bare status such as 404."""
    return str(error.response["Error"]["Code"])


def find(client: t.Any, name: str) -> State | None:
    """A bucket's versioning and policy as they are; None without such a bucket. Raises ClientError."""
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if code_of(error) in ("404", "NoSuchBucket"):
            return None
        raise
    try:
        policy = json.loads(client.get_bucket_policy(Bucket=name)["Policy"])
    except ClientError as error:
        if code_of(error) != "NoSuchBucketPolicy":
            raise
        policy = None
    return {"versioned": client.get_bucket_versioning(Bucket=name).get("Status") == "Enabled", "policy": policy}


def change(client: t.Any, name: str, region: str, now: State | None, wanted: State) -> None:
    """Make a bucket what it should be, beginning with versioning: nobody may write before it. Raises ClientError."""
    if now is None:
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": region})
        now = {"versioned": False, "policy": None}
    if now["versioned"] != wanted["versioned"]:
        status = "Enabled" if wanted["versioned"] else "Suspended"
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
    if now["policy"] != wanted["policy"]:
        if wanted["policy"] is None:
            client.delete_bucket_policy(Bucket=name)
        else:
            client.put_bucket_policy(Bucket=name, Policy=json.dumps(wanted["policy"], separators=(",", ":")))


def connect(given: State) -> t.Any:
    """A client of the store that gives up after a minute at most."""
    return boto3.client(
        "s3",
        endpoint_url=given["endpoint"],
        region_name=given["region"],
        verify=given["ca_file"],
        aws_access_key_id=given["access_key"],
        aws_secret_access_key=given["secret_key"],
        config=Config(
            signature_version="s3v4", s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=20,
            retries={"total_max_attempts": 2},
        ),
    )  # fmt: skip


def main() -> None:
    """Compare, change, say what differs."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "versioned": {"type": "bool", "default": True},
            "policy": {"type": "dict"},
            "endpoint": {"type": "str", "required": True},
            "region": {"type": "str", "required": True},
            "ca_file": {"type": "path", "required": True},
            "access_key": {"type": "str", "required": True, "no_log": False},
            "secret_key": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    if boto3 is None:
        module.fail_json(msg="Python on this host has no boto3. Install python3-boto3 before this task.")
    name, wanted = given["name"], {"versioned": given["versioned"], "policy": given["policy"]}
    try:
        client = connect(given)
        now = find(client, name)
        if now != wanted and not module.check_mode:
            change(client, name, given["region"], now, wanted)
    except (ClientError, BotoCoreError) as error:
        module.fail_json(msg=f"Bucket {name} at {given['endpoint']} can not be made what it should be: {error}")
    module.exit_json(
        changed=now != wanted,
        diff={
            "before_header": f"bucket {name}",
            "after_header": f"bucket {name}",
            "before": now or {},
            "after": wanted,
        },
    )


if __name__ == "__main__":
    main()
