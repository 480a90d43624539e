"""`make bench` can be started, and says what it can measure."""

import subprocess
import sys

from lib.fleet import REPOSITORY


def test_an_unknown_figure_is_refused_with_those_that_are_known() -> None:
    command = [sys.executable, "tests/bench/run.py", "speed"]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert said.returncode == 2, said.stderr
    assert "no such figure: speed. Known: machines_boot_8, " in said.stdout
