"""What the tests of the main job share: a run that takes seconds, and starting it as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastcl.run import TIMINGS

# 160 images to learn from, 20 steps; one thread, so that the tests may run beside each other.
TINY: dict[str, Any] = {
    "limit": 200, "epochs": 5, "batch_size": 40, "width": 4, "hidden": 16, "projection": 8, "warmup_epochs": 1.0,
    "threads": 1, "checkpoint_steps": 1, "ladder": "none",
}  # fmt: skip


def tiny_flags(**changed: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | changed).items()]


def fastcl_process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """``python -m fastcl`` in the background; whoever starts it waits for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "fastcl", *arguments], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def fastcl_command(*arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    process = fastcl_process(*arguments)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def lasting_metrics(out: Path) -> dict[str, Any]:
    """The metrics that do not depend on the clock."""
    metrics = json.loads((out / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in TIMINGS}
