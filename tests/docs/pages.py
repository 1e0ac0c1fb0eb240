"""The pages of the documentation, cut into their code blocks."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(
    r"(?:<!-- (?P<mark>not run: [^\n]+?|run) -->\n\s*)?"
    r"^(?P<indent> *)```(?P<language>[a-z]+)?(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```\s*?$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([A-Za-z0-9_]+\.py)"')


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: `python`, `text`, `console`, …
        body: What is between the fences, without the indentation of the fence.
        line: Line of the page on which the body begins, from 1.
        title: File name that the block declares (`title="record.py"`): it is saved and run as a script.
        mark: `run`, `not run: reason`, or nothing, from the HTML comment before the block.
        follows: Nothing but blank lines stands between the block before and this one.
    """

    language: str
    body: str
    line: int
    title: str | None
    mark: str | None
    follows: bool

    @property
    def skipped(self) -> bool:
        """Whether the page says that the block is not run."""
        return self.mark is not None and self.mark.startswith("not run")


def pages() -> list[Path]:
    """README.md, and every page below docs/."""
    return [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file()]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    blocks, end = [], 0
    for match in _FENCE.finditer(text):
        title = _TITLE.search(match["info"])
        blocks.append(
            Block(
                language=match["language"] or "",
                body=textwrap.dedent(match["body"]),
                line=text.count("\n", 0, match.start("body")) + 1,
                title=title[1] if title else None,
                mark=match["mark"],
                follows=not text[end : match.start()].strip(),
            )
        )
        end = match.end()
    return blocks
