#!/usr/bin/python3
"""What a bucket's lifecycle rules would do, for a gateway that has none: arches-s3-prune SETTINGS

Removes, for good, what has not been current for a bucket's number of days: older versions, and deleted keys with their
markers. Aborts uploads that nobody finished. SETTINGS is a JSON file; root's keys are in the environment
(ROOT_ACCESS_KEY, ROOT_SECRET_KEY). Safe to kill and to repeat. Exit status 1 with one sentence when something stays
that should be gone; the figures for the node exporter are then those of the last good run.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BATCH = 1000  # as many as S3 takes in one request


class PruneError(Exception):
    """Something could not be removed; the message is one sentence."""


class Version(NamedTuple):
    """One version of a key, or a marker that says the key was deleted."""

    key: str
    version_id: str
    marker: bool
    latest: bool
    since: datetime.datetime
    size: int


def doom(versions: Iterable[Version], before: datetime.datetime) -> list[Version]:
    """Which of one key's versions go.

    A version stopped being current when the next one came: that moment counts, not its own age. A key whose last
    word is an old marker goes altogether.

    :param versions: all versions and markers of one key.
    :param before: what has not been current since this moment goes.
    """
    ordered = sorted(versions, key=lambda version: (version.latest, version.since))
    # The gateway tells of an older version when it stopped being current, and of a marker how old the object was that
    # it hides: nothing happened before what came before it.
    times = list(itertools.accumulate((version.since for version in ordered), max))
    gone = [version for version, ended in zip(ordered, times[1:], strict=False) if ended < before]
    last = ordered[-1]
    return [*gone, last] if last.marker and times[-1] < before else gone


def all_versions(client: Any, bucket: str) -> Iterator[Version]:
    """Every version and marker of a bucket."""
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for kind in ("Versions", "DeleteMarkers"):
            for entry in page.get(kind, []):
                yield Version(
                    entry["Key"], entry["VersionId"], kind == "DeleteMarkers", entry["IsLatest"],
                    entry["LastModified"], entry.get("Size", 0),
                )  # fmt: skip


def delete(client: Any, bucket: str, versions: list[Version]) -> None:
    """Remove versions for good.

    :raises PruneError: naming the first that stays.
    """
    for start in range(0, len(versions), BATCH):
        objects = [{"Key": version.key, "VersionId": version.version_id} for version in versions[start : start + BATCH]]
        refused = client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True}).get("Errors", [])
        if refused:
            raise PruneError(
                f"bucket {bucket}: {len(refused)} versions can not be removed, the first is "
                f"{refused[0]['Key']} ({refused[0]['VersionId']}): {refused[0].get('Message') or refused[0]['Code']}"
            )


def abort_uploads(client: Any, bucket: str, before: datetime.datetime) -> int:
    """Abort the uploads that began before a moment and were never finished; how many they were."""
    uploads = [
        upload
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
        for upload in page.get("Uploads", [])
        if upload["Initiated"] < before
    ]
    for upload in uploads:
        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(uploads)


def prune(client: Any, bucket: str, keep_days: int, upload_days: int, now: datetime.datetime) -> dict[str, int]:
    """Remove what is due from one bucket.

    :return: bytes that stay, by state: current, older.
    :raises PruneError: if something that is due stays.
    """
    keys: dict[str, list[Version]] = defaultdict(list)
    for version in all_versions(client, bucket):
        keys[version.key].append(version)
    before = now - datetime.timedelta(days=keep_days)
    gone = {version for history in keys.values() for version in doom(history, before)}
    # A marker removed before what it hides would bring a deleted key back, if the job ended in between.
    delete(client, bucket, [version for version in gone if not version.latest])
    delete(client, bucket, [version for version in gone if version.latest])
    uploads = abort_uploads(client, bucket, now - datetime.timedelta(days=upload_days))
    print(f"{bucket}: removed {len(gone)} versions and markers, {uploads} unfinished uploads")
    stay = [version for history in keys.values() for version in history if version not in gone]
    return {
        "current": sum(version.size for version in stay if version.latest),
        "older": sum(version.size for version in stay if not version.latest),
    }


def publish(path: Path, sizes: dict[str, dict[str, int]], free: int) -> None:
    """Write the figures for the node exporter, in one step."""
    lines = [f"arches_s3_prune_last_success_timestamp_seconds {time.time():.0f}", f"arches_s3_free_bytes {free}"]
    lines += [
        'arches_s3_bucket_bytes{bucket="' + bucket + f'",state="{state}"}} {size}'
        for bucket, states in sizes.items()
        for state, size in states.items()
    ]
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.chmod(0o644)
    temporary.replace(path)


def main() -> None:
    """Prune every bucket of the settings."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    client = boto3.client(
        "s3",
        endpoint_url=settings["endpoint"],
        region_name=settings["region"],
        verify=settings["ca_file"],
        aws_access_key_id=os.environ["ROOT_ACCESS_KEY"],
        aws_secret_access_key=os.environ["ROOT_SECRET_KEY"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=60),
    )
    now = datetime.datetime.now(datetime.UTC)
    try:
        sizes = {
            bucket: prune(client, bucket, days, settings["upload_days"], now)
            for bucket, days in settings["buckets"].items()
        }
    except (PruneError, ClientError, BotoCoreError) as error:
        sys.exit(f"arches-s3-prune: {settings['endpoint']}: {error}")
    publish(Path(settings["figures"]), sizes, shutil.disk_usage(settings["store"]).free)


if __name__ == "__main__":
    main()
