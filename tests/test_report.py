from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from run_helpers import TINY

from fastcl.config import make_config
from fastcl.run import run


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: dict[str, str] = {}
        self.links: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.links += [values[name] or "" for name in ("src", "href") if name in values]
        if tag == "img":
            self.images[values["id"] or ""] = values["src"] or ""
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, dict]:
    out = tmp_path_factory.mktemp("report") / "out"
    metrics = run(make_config(TINY | {"epochs": 2}), out, command="fastcl run --data '<b>&digits'")
    text = (out / "report.html").read_text(encoding="utf-8")
    return Page(text), text, metrics


def test_every_picture_is_filled(report: tuple[Page, str, dict]):
    page, _, _ = report
    assert set(page.images) == {"views", "loss", "map", "neighbors", "confusion"}
    for name, source in page.images.items():
        assert source.startswith("data:image/png;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        page_white = Image.new("RGBA", picture.size, "white")
        pixels = np.asarray(Image.alpha_composite(page_white, picture.convert("RGBA")).convert("L"))
        assert min(pixels.shape) > 200, name
        assert pixels.std() > 5, f"{name} is blank"
        # Not a frame around nothing: there is something in each quarter.
        for half in np.array_split(pixels, 2):
            for quarter in np.array_split(half, 2, axis=1):
                assert quarter.std() > 2, f"a quarter of {name} is blank"


def test_the_file_stands_alone(report: tuple[Page, str, dict]):
    page, text, _ = report
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"@import|url\(|<script", text)
    assert page.open == []


def test_it_says_what_was_done(report: tuple[Page, str, dict]):
    page, _, metrics = report
    text = " ".join(page.text)
    assert "fastcl run --data '<b>&digits'" in text
    assert f"{100 * metrics['linear_probe_accuracy']:.1f} %" in text
    assert "crop_scale = 0.5" in text
    assert "torch " in text
