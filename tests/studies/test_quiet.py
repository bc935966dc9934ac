"""What a study says while it runs under Ray, piped to a file: its own lines, and nothing of its tools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
OURS = (
    r"a step of \w+ costs [\d.e+-]+ device-milliseconds and takes [\d.e+-]+ MiB a worker",
    r"( *\d+%  )?(prices|all seeds): 1 worker(  ·  .*)?",
    r" *\d+%  seed 0 · \w+, (judged after )?[\d,]+ (of [\d,]+ )?steps  ·  \d+ of \d+ cells  ·  .* device-s.*",
    r"Ray's logs: .*/ray/ray_logs",
)
OPTIONS = {
    **{"budgets": "500000flop,1000000flop", "seeds": "1", "splits": "2", "workers": "1", "train-samples": "64"},
    **{"hidden": "8", "layers": "2", "fm-batch": "16", "pg-batch": "8", "solver-steps": "2"},
    **{"evaluation-samples": "32", "evaluation-tolerance": "1e-2"},
}


@pytest.mark.ray
def test_a_study_piped_to_a_file_says_only_its_own_lines(tmp_path: Path) -> None:
    command = [sys.executable, "studies/budget_split.py", f"--output={tmp_path / 'results'}"]
    command += [f"--{name}={value}" for name, value in OPTIONS.items()]
    said = tmp_path / "stderr"
    with said.open("wb") as stream:
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=stream,
            check=False,
        )
    text = said.read_bytes().decode()
    assert done.returncode == 0, text
    assert text.endswith("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    *lines, last = text.splitlines()
    assert len(lines) >= 3, text
    strange = [line for line in [*lines, last] if not any(re.fullmatch(ours, line) for ours in OURS)]
    assert not strange
    logs = Path(last.removeprefix("Ray's logs: "))
    assert any(logs.glob("raylet*")), "Ray's own logs are kept"
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
