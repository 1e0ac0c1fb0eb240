"""The built pages ask nobody but their own server for anything."""

from __future__ import annotations

import re

from .pages import ROOT, blocks_of, pages

EXTERNAL = re.compile(r"!\[[^\]]*\]\(\s*(?:https?:)?//|<(?:img|script|iframe|link)[^>]*(?:https?:)?//", re.IGNORECASE)


def test_the_theme_fetches_no_font_and_no_script() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^  font: false\b", config, re.MULTILINE)
    assert "://" not in config


def test_no_page_embeds_anything_from_elsewhere() -> None:
    for page in pages():
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not EXTERNAL.search(text), page
        # The theme would fetch the renderer of such a block from a CDN.
        assert "mermaid" not in {block.language for block in blocks_of(page)}, page
