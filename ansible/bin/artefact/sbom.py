"""What a release is made of, as a CycloneDX document: every distribution that it brings along."""

import importlib.metadata
from email.message import Message
from pathlib import Path
from typing import Any

SPEC = "1.6"
UNKNOWN = {"", "UNKNOWN"}


def document(name: str, version: str, site: Path) -> dict[str, Any]:
    """The bill of materials of a directory into which dependencies were installed.

    It names no time and no serial number: equal content gives an equal document.

    :param name: name of the release, e.g. ``api``.
    :param site: the release's ``site-packages``.
    """
    found = importlib.metadata.distributions(path=[str(site)])
    components = sorted((component(item) for item in found), key=lambda entry: str(entry["purl"]))
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": f"arches-{name}",
                "name": f"arches-{name}",
                "version": version,
            },
        },
        "components": components,
        "dependencies": [{"ref": f"arches-{name}", "dependsOn": [entry["bom-ref"] for entry in components]}],
    }


def component(distribution: importlib.metadata.Distribution) -> dict[str, Any]:
    """The entry of one distribution."""
    name = distribution.name.lower().replace("_", "-").replace(".", "-")
    purl = f"pkg:pypi/{name}@{distribution.version.replace('+', '%2B')}"
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": distribution.name,
        "version": distribution.version,
        "purl": purl,
    }
    # The metadata are headers of a mail, whatever importlib calls them.
    licenses = licenses_of(distribution.metadata)  # type: ignore[arg-type]
    return {**entry, "licenses": licenses} if licenses else entry


def licenses_of(metadata: Message) -> list[dict[str, Any]]:
    """Licenses as the package states them: an SPDX expression, else a short name, else its classifiers."""
    expression = metadata.get("License-Expression", "")
    if expression:
        return [{"expression": expression}]
    stated = metadata.get("License", "").strip()
    # Some put the whole text there.
    if stated not in UNKNOWN and "\n" not in stated:
        return [{"license": {"name": stated}}]
    classifiers = (value.split(" :: ") for value in metadata.get_all("Classifier", []))
    return [{"license": {"name": parts[-1]}} for parts in classifiers if parts[0] == "License"]
