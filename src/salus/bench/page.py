"""The page `docs/performance.md`, which `make bench` writes."""

from __future__ import annotations

from collections.abc import Sequence

from .many import STEPS, Many
from .report import demands, markdown, method, number
from .run import Results

_HEAD = """# Performance

<!-- Written by `make bench` (`salus bench --page`): do not edit, run it again. -->

SALUS beside what people use today, on the same episodes, in one run. `salus bench` repeats it on any machine, and
`salus bench data.zarr` on your own data. Absolute figures are this machine's; the ratios travel better."""


def page(results: Results, many: Sequence[Many], *, chart: str | None = None) -> str:
    """The whole page.

    Args:
        results: What was measured.
        many: What was measured on many episodes, SALUS first; may be empty.
        chart: The chart's path relative to the page.
    """
    parts = [_HEAD, "## Method", method(results)]
    if chart is not None:
        parts.append(f"![Rates of all contestants, as bars]({chart})")
    parts += [_promised(results), "## Everything that was measured", markdown(results)]
    if many:
        parts.append(_many(many))
    return "\n\n".join(parts) + "\n"


def _promised(results: Results) -> str:
    lines = [
        "## What must hold, and what was measured",
        "",
        "Ratios of SALUS to the other, in the same run. TensorStore is also measured through a view with the channels",
        "last, which is faster and which its users have to know: see the tables.",
        "",
        "| | at least | measured | |",
        "|---|---:|---:|---|",
    ]
    for demand, ratio in demands(results):
        verdict = "not measured" if ratio is None else "holds" if ratio >= demand.at_least else "**does not hold**"
        # Two decimals: 1.46 must not read as 1.5 beside a demand of 1.5.
        shown = "" if ratio is None else f"{ratio:.2f} ×" if ratio < 10 else f"{number(ratio)} ×"
        lines.append(f"| {demand.words} | {demand.at_least:g} × | {shown} | {verdict} |")
    return "\n".join(lines)


def _many(many: Sequence[Many]) -> str:
    episodes, ours = many[0].num_episodes, many[0]
    titles = [row.title for row in many]
    rows: list[tuple[str, list[str]]] = [
        (f"write {episodes} episodes", [f"{row.write_s:.1f} s" for row in many]),
        ("load one", [f"{row.one_s * 1e3:.1f} ms" for row in many]),
        ("load all", [f"{row.all_s:.1f} s" for row in many]),
        (
            "size",
            [f"{row.stored_bytes / 1e9:.2f} GB, {row.raw_bytes / row.stored_bytes:.1f} × smaller" for row in many],
        ),
        ("random access", [f"{number(row.images_per_s)} images/s" for row in many]),
        ("files", [f"{row.files:,}" for row in many]),
    ]
    lines = [
        f"## {episodes} episodes, row by row",
        "",
        "The note that SALUS started from claimed, of one Zarr store against 500 HDF5 files: one store instead of 500",
        "files, zstd 3 to 5 times smaller, and writing step by step and in parallel. Here are its rows, measured:",
        f"{episodes} episodes were really written, the rendered ones cut to {STEPS} steps and repeated,",
        f"{ours.raw_bytes / 1e9:.2f} GB raw. Only SALUS waits until each episode is durable. Writing and loading all",
        "were done once; the other two rows are medians of 15 turns. One store it is, but of many files: see",
        "[why this layout](explanation/why.md), which also has the chunk plan of the note.",
        "",
        f"| | {' | '.join(titles)} |",
        f"|---|{'---:|' * len(titles)}",
        *(f"| {what} | {' | '.join(cells)} |" for what, cells in rows),
    ]
    return "\n".join(lines)
