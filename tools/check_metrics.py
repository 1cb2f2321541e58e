"""Fails where a run's metrics fall short.

    python tools/check_metrics.py runs/demo/metrics.json 'knn_accuracy >= 0.965' \
        'int8_linear_probe_accuracy > linear_probe_accuracy - 0.005'
"""

import json
import operator
import re
import sys
from pathlib import Path

COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
TERM = r"[a-z_0-9.]+"
WANTED = re.compile(rf"\s*({TERM})\s*(>=|>|<=|<)\s*({TERM})\s*(?:([+-])\s*({TERM}))?\s*")


def value(term: str, metrics: dict) -> float:
    """A metric by its name, or a number."""
    try:
        return float(metrics.get(term, term))
    except (TypeError, ValueError):
        raise SystemExit(f"{term}: expected the name of a metric with a value, or a number") from None


def check(wanted: str, metrics: dict) -> bool:
    """Prints one comparison with its numbers, and returns whether it holds."""
    parts = WANTED.fullmatch(wanted)
    if parts is None:
        raise SystemExit(f"{wanted!r}: expected '<metric> >= <metric or number> [+ or - <metric or number>]'")
    left, comparison, right, sign, offset = parts.groups()
    bound = value(right, metrics) + (float(f"{sign}1") * value(offset, metrics) if sign else 0.0)
    holds = COMPARE[comparison](value(left, metrics), bound)
    print(f"{'ok  ' if holds else 'FAIL'} {wanted}  ({value(left, metrics):g} {comparison} {bound:g})")
    return bool(holds)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    metrics = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = [check(wanted, metrics) for wanted in sys.argv[2:]]
    sys.exit(0 if all(results) else 1)
