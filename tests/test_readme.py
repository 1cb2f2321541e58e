"""What the README and the start page show, runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_python_of_the_page_runs(page, capsys):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    names: dict[str, Any] = {"model": model, "loader": [images], "images": images}
    blocks = python_blocks(page)
    assert blocks
    for block in blocks:
        exec(block, names)
    assert names["loss"].isfinite()
    if page == "README.md":
        assert names["views"].shape == (256, 3, 32, 32)
        assert "int8" in capsys.readouterr().out.lower()


def test_every_file_that_the_readme_names_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
