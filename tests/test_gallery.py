from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fastcl import transforms as T

ROOT = Path(__file__).parents[1]
SHOW_NOTHING = {"Compose", "MultiViewTransform", "Normalize", "ToDtype", "Transform"}


@pytest.fixture(scope="module")
def tool():
    pytest.importorskip("sklearn", reason="scikit-learn, whose photographs are used, is absent")
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "tools" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gallery_has_every_transform(tool):
    classes = {name for name in T.__all__ if isinstance(getattr(T, name), type)}
    assert {type(example).__name__ for example, _ in tool.EXAMPLES} == classes - SHOW_NOTHING


def test_every_transform_changes_the_photograph(tool):
    pictures = tool.photographs(96)
    for example, which in tool.EXAMPLES:
        views = tool.draws(example, pictures, which)
        assert len(views) == 4
        assert any(view.shape != pictures[which].shape or (view != pictures[which]).any() for view in views), example
