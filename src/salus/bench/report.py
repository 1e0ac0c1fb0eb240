"""The results for people: a table, a chart, and the page `docs/performance.md`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import MissingExtraError
from .run import LOADER_WORKERS, MEMORY_BATCHES, RECORDED_EPISODES, UNITS, Results

WORKS = {
    "record": "record, step by step where it can be",
    "one episode": "load one episode, at random",
    "all": "load all episodes",
    "frames": "random images of one camera",
    "samples": "training samples, in process",
    "DataLoader": f"training samples, stock DataLoader, {LOADER_WORKERS} workers",
    "all, cold": "load all, cold page cache",
    "frames, cold": "random images, cold page cache",
}

_COLORS = {"salus": "#d1495b", "decoding": "#30475e"}


class Demand(NamedTuple):
    """A ratio that must hold: SALUS against another at some work."""

    work: str
    against: str
    at_least: float
    words: str


DEMANDS = (
    Demand("samples", "tensorstore", 1.5, "training samples against TensorStore on the same files"),
    Demand("samples", "lerobot-video", 30, "training samples against LeRobot, video"),
    Demand("samples", "lerobot-image", 100, "training samples against LeRobot, images"),
    Demand("samples", "zarr", 15, "training samples against zarr-python item by item"),
    Demand("samples", "hdf5-gzip", 8, "training samples against h5py gzip, a file kept open per episode"),
    Demand("samples", "decoding", 0.9, "training samples against decoding alone, image by image"),
    Demand("samples", "decoding-16", 0.9, "training samples against decoding alone, 16 images in a call: the bound"),
    Demand("all", "hdf5-gzip", 6, "load all against h5py gzip, warm"),
    Demand("all", "hdf5", 1.0, "load all against h5py uncompressed, warm"),
    Demand("one episode", "hdf5-gzip", 5, "one episode against h5py gzip"),
    Demand("record", "lerobot-video", 10, "recording against LeRobot, video"),
    Demand("record", "lerobot-image", 10, "recording against LeRobot, images"),
    Demand("record", "hdf5-gzip", 2, "recording against h5py gzip"),
    Demand("DataLoader", "zarr", 4, "stock DataLoader, 2 workers, against the same over zarr-python"),
)


def rows(results: Results) -> Iterator[tuple[str, str, list[tuple[str, float | None, float | None, str]]]]:
    """For each work its words, its unit, and for each contestant (title, rate, SALUS's ratio to it, note)."""
    for work, words in WORKS.items():
        lines = []
        for name, title in results.titles.items():
            rate, note = results.rate(work, name), results.notes.get((work, name), "")
            if rate is not None or note not in ("", "–"):
                lines.append((title, rate, results.ratio(work, "salus", name), note))
        if lines:
            yield words, UNITS[work], lines


def demands(results: Results) -> list[tuple[Demand, float | None]]:
    """Every ratio that must hold, with what was measured; None where the other took no part."""
    return [(demand, results.ratio(demand.work, "salus", demand.against)) for demand in DEMANDS]


def number(value: float | None, digits: int = 3) -> str:
    """A figure to three digits, with thousands apart."""
    if value is None:
        return "–"
    if value >= 99.5:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{value:.{digits - 1}g}"


def markdown(results: Results) -> str:
    """The tables of `docs/performance.md`."""
    lines = []
    for words, unit, contestants in rows(results):
        lines += [f"### {words[0].upper()}{words[1:]}", "", f"| | {unit} | SALUS is |", "|---|---:|---:|"]
        for title, rate, ratio, note in contestants:
            times = "" if ratio is None or title == "SALUS" else f"{number(ratio, 3)} ×"
            lines.append(f"| {title} | {number(rate) if rate is not None else note} | {times} |")
        lines.append("")
    lines += [
        "### On disk, and in memory",
        "",
        "| | MB | smaller than raw | files | memory, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, sizes in results.sizes.items():
        stored, files = sizes["bytes"], sizes["files"]
        memory = sizes["memory_bytes"]
        cells = [
            "" if stored is None else number(stored / 1e6),
            "" if sizes["times_smaller"] is None else f"{number(sizes['times_smaller'])} ×",
            "" if files is None else f"{files:,.0f}",
            "" if memory is None else number(memory / 1e6),
        ]
        if any(cells):
            lines.append(f"| {results.titles[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def method(results: Results) -> str:
    """How it was measured, in words."""
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    absent = "".join(f" {title} took no part ({reason})." for title, reason in results.absent.items())
    return " ".join(
        [
            f"{about['date']}; {about['machine']}; {versions}.",
            f"{about['source']}: {about['steps']} steps, {about['raw_bytes'] / 1e9:.2f} GB raw.",
            f"{about['rounds']} rounds; in each, the contestants take turns in another order, and each measurement",
            f"lasts at least {about['budget_s']:g} s. Shown are medians over the rounds, and medians of the ratios",
            f"within a round. Each contestant has {about['threads']} threads. Before anything is timed, what each",
            "reads is compared with what it was given. A training sample is each camera at one step and 16 actions;",
            "batches are of 64, fewer where a contestant is slow. LeRobot reads two episodes where others read",
            "all, and decodes video with PyAV; the note's plan holds two episodes of 20 steps. Rates are per step.",
            f"Recording writes {RECORDED_EPISODES} episodes; SALUS commits each durably,",
            "the others do not ask the disk. Warm means that the files are in the page cache; cold, that",
            "the operating system was told to forget them (`posix_fadvise`), the disk's own cache not. Memory is the",
            f"peak while {MEMORY_BATCHES} batches are read, beyond the open dataset.{absent}",
        ]
    )


def chart(results: Results, path: Path) -> None:
    """Training samples and recording as bars, as SVG, PNG or PDF.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.of("a chart", extra="picture") from error
    works = [work for work in ("samples", "all", "record") if any(key[0] == work for key in results.rates)]
    figure = Figure(figsize=(11, 1.1 + 0.3 * len(results.titles)), layout="constrained")
    axes = figure.subplots(1, len(works), squeeze=False)[0]
    names = list(results.titles)[::-1]
    for axis, work in zip(axes, works, strict=True):
        rates = [results.rate(work, name) for name in names]
        colors = [_COLORS.get(name.partition("-")[0], "#b8c4cc") for name in names]
        bars = axis.barh([results.titles[name] for name in names], [rate or 0 for rate in rates], color=colors)
        axis.bar_label(bars, [number(rate) if rate is not None else "" for rate in rates], padding=3, fontsize=8)
        axis.set_title(f"{WORKS[work]}, {UNITS[work]}", fontsize=9, loc="left")
        axis.set_xlim(0, 1.2 * max(rate or 0 for rate in rates))
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(left=False, bottom=False, labelbottom=False, labelsize=8, labelleft=axis is axes[0])
    figure.savefig(path, dpi=150)
