"""Write monitoring/dashboards/json/<uid>.json from the Python beside it: python monitoring/dashboards/generate.py

The same input gives the same bytes. A file of a dashboard that is no more is deleted.
"""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from boards import ALL

TARGET = Path(__file__).parent / "json"


def documents() -> dict[str, str]:
    """Content of every file, by its name."""
    made = [board.build() for board in ALL]
    return {f"{board.uid}.json": json.dumps(board, cls=JSONEncoder, indent=1, sort_keys=True) + "\n" for board in made}


def main() -> int:
    """Write what changed, and say it."""
    TARGET.mkdir(exist_ok=True)
    wanted = documents()
    for file in sorted(TARGET.glob("*.json")):
        if file.name not in wanted:
            file.unlink()
            print(f"{file.name}: deleted")
    for name, content in wanted.items():
        file = TARGET / name
        if not file.exists() or file.read_text() != content:
            file.write_text(content)
            print(f"{name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
