"""The bill of materials is valid CycloneDX, names everything that is in the release, and nothing else."""

import json
import re
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from artefact.build import install_dependencies
from artefact.sbom import document

from .conftest import REPOSITORY, Project


def findings(content: object) -> list[str]:
    """What CycloneDX's own validator says."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(content))
    return [] if error is None else [str(error)]


@pytest.mark.parametrize("name", ["app", "embedder"])
def test_what_is_locked_is_in_the_document(name: str, tmp_path: Path) -> None:
    lock = REPOSITORY / "requirements" / f"{name}.txt"
    install_dependencies(lock, tmp_path)
    made = document(name, "v1.4.0", tmp_path)
    assert not findings(made)
    found = {f"{part['name']}=={part['version']}".lower().replace("_", "-") for part in made["components"]}
    locked = set(re.findall(r"^([a-z0-9._-]+==[^ ;]+)", lock.read_text(), re.MULTILINE))
    # Some are for other systems only.
    only = set(re.findall(r"^([a-z0-9._-]+==[^ ;]+) ;", lock.read_text(), re.MULTILINE))
    assert locked - only <= found <= locked
    unknown = [part["name"] for part in made["components"] if "licenses" not in part]
    assert not unknown, "a license is missing"


def test_it_names_the_release_and_no_time(project: Project, tmp_path: Path) -> None:
    install_dependencies(project.lock, tmp_path)
    made = document("toy", "v1.4.0", tmp_path)
    assert made == document("toy", "v1.4.0", tmp_path)
    assert made["metadata"] == {
        "component": {"type": "application", "bom-ref": "arches-toy", "name": "arches-toy", "version": "v1.4.0"}
    }
    [part] = made["components"]
    assert part["purl"] == "pkg:pypi/h11@" + part["version"] and part["licenses"] == [{"license": {"name": "MIT"}}]
    assert not findings(made)


def test_a_wrong_document_is_found(project: Project, tmp_path: Path) -> None:
    install_dependencies(project.lock, tmp_path)
    made = document("toy", "v1.4.0", tmp_path)
    made["components"][0]["type"] = "thing"
    assert findings(made)
