from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "check_metrics.py"

CASES = {
    "holds": (["knn >= 0.9", "int8 > probe - 0.01"], 0, "ok   knn >= 0.9"),
    "equal_is_not_above": (["knn > 0.95"], 1, "FAIL knn > 0.95"),
    "one_of_two": (["knn >= 0.9", "int8 > probe - 0.001"], 1, "FAIL int8 > probe - 0.001  (0.97 > 0.974)"),
    "unknown_metric": (["kmm >= 0.9"], 1, "kmm: expected the name of a metric"),
    "metric_without_a_value": (["none >= 0.9"], 1, "none: expected the name of a metric with a value"),
    "no_comparison": (["knn = 0.9"], 1, "expected '<metric> >="),
}


@pytest.mark.parametrize("name", CASES)
def test_exit_code_and_output(name: str, tmp_path: Path):
    wanted, code, message = CASES[name]
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"knn": 0.95, "probe": 0.975, "int8": 0.97, "none": None}))
    done = subprocess.run([sys.executable, SCRIPT, path, *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stdout + done.stderr
