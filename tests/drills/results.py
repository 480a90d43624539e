"""What drills leave in results/<kind>/<drill>.json. `make drills-report` takes it over to docs/drills."""

import json
import subprocess
from pathlib import Path
from typing import Any

from lib.fleet import REPOSITORY

RESULTS = REPOSITORY / "results"


def keep(kind: str, name: str, figures: dict[str, Any]) -> Path:
    """Write a drill's figures, and the commit that they are of; the file. An earlier run of the same name is gone."""
    asked = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    file = RESULTS / kind / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"drill": name, "commit": commit, **figures}, indent=1) + "\n")
    return file
