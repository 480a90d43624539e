"""`make up`, cut off at a random point and typed again, ends with a healthy fleet."""

import os
import random
import signal
import subprocess

from lib.fleet import REPOSITORY, Fleet


def test_an_interrupted_up_is_finished_by_the_next(fleet: Fleet) -> None:
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    stop_at = random.Random(seed).randint(10, 60)
    print(f"SEED={seed}: interrupted at task {stop_at}")
    line = ["make", "--no-print-directory", "up"]
    first = subprocess.Popen(
        line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert first.stdout is not None
    tasks = 0
    for output in first.stdout:
        tasks += output.startswith("TASK [")
        if tasks == stop_at:
            os.killpg(first.pid, signal.SIGINT)
            break
    try:
        rest, _ = first.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        # Ansible waits for ever when the interrupt met a worker that was handing over its result.
        os.killpg(first.pid, signal.SIGKILL)
        rest, _ = first.communicate()
    assert first.returncode != 0, f"the run ended before task {stop_at}:\n{rest[-2000:]}"

    second = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200, check=False)
    assert second.returncode == 0, (second.stdout + second.stderr)[-6000:]
    assert "https://api.arches.test" in second.stdout, "the summary names the URL"
    assert "curl" in second.stdout
    assert fleet.healthy(), fleet.status()[1]
