"""What `info`, `ls` and `show` say, as documents for --json and as tables for people."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from ..dataset import Dataset
from ..episode import Episode, describe
from ..labels import Horizons, Outcome
from ..log.entries import Entry
from ..schema import STEP, Feature, Image
from .terminal import console, size, table, text

_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 16
_WIDE = 110


# --- a dataset -------------------------------------------------------------------------------------------------


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """The content of `salus info`."""
    outcomes: dict[str, Counter[str]] = {}
    sound = [entry for entry in dataset.episodes if entry.status != "corrupt"]
    for entry in sound:
        outcomes.setdefault(entry.result, Counter())[entry.failure_kind or ""] += 1
    schema = dataset.schema
    raw, stored = dataset.raw_bytes, dataset.stored_bytes
    return {
        "path": dataset.url,
        "format": 1,
        "tag": dataset.tag_name,
        "episodes": len(dataset),
        "outcomes": {
            result: {"episodes": sum(kinds.values()), "kinds": {kind: n for kind, n in kinds.items() if kind}}
            for result, kinds in outcomes.items()
        },
        "corrupt": dataset.episodes["status"].count("corrupt"),
        "salvaged": dataset.episodes["status"].count("salvaged"),
        "unfinished": len(dataset.unfinished()) if dataset.tag_name is None else 0,
        "steps": _lengths(sound, STEP),
        "rate_hz": schema.rate_hz,
        "clocks": {clock: {"rate_hz": rate, "steps": _lengths(sound, clock)} for clock, rate in schema.clocks.items()},
        "raw_bytes": raw,
        "stored_bytes": stored,
        "compression": raw / stored if stored else None,
        "features": {name: _describe_feature(feature) for name, feature in schema.features.items()},
        "not_lossless": {name: feature.coding for name, feature in schema.features.items() if not feature.is_lossless},
        "failure_kinds": list(schema.failure_kinds),
        "horizons": {"values": list(schema.label_horizons.values), "unit": schema.label_horizons.unit},
        "schema_revision": dataset.schema_revision,
        "tags": dataset.tags(),
    }


def _lengths(entries: list[Entry], clock: str) -> dict[str, Any]:
    lengths = [entry.length(clock) for entry in entries]
    return {
        "total": sum(lengths),
        "shortest": min(lengths, default=0),
        "median": float(np.median(lengths)) if lengths else 0.0,
        "longest": max(lengths, default=0),
    }


def _describe_feature(feature: Feature) -> dict[str, Any]:
    how = f"{feature.coding}, one chunk per image" if isinstance(feature, Image) else feature.coding
    document = {key: value for key, value in feature.to_json().items() if value not in (None, False)}
    document["storage"] = f"computed from the {feature.derived}" if feature.derived else how
    return document


def print_dataset(document: dict[str, Any]) -> None:
    """`salus info` for people."""
    steps, at_tag = document["steps"], f" at tag {document['tag']}" if document["tag"] else ""
    console.print(text(f"{document['path']}{at_tag}", "bold"))
    console.print(
        f"{_count(document['episodes'], 'episode')}, {_count(steps['total'], 'step')} {_extremes(steps)} "
        f"at {document['rate_hz']:g} Hz"
    )
    for clock, about in document["clocks"].items():
        counted = f"{_count(about['steps']['total'], 'step')} {_extremes(about['steps'])} at {about['rate_hz']:g} Hz"
        console.print(text(f"clock {clock}: {counted}"))
    if document["stored_bytes"]:
        ratio = document["compression"]
        whole = "" if document["not_lossless"] else ", nothing lost"
        smaller = f": {ratio:.1f} × smaller{whole}" if ratio >= 1 else ""
        console.print(f"{size(document['stored_bytes'])} on disk for {size(document['raw_bytes'])} of values{smaller}")
    for name, coding in document["not_lossless"].items():
        console.print(text(f"{name}: {coding}", "yellow"))
    for count, what in (
        (document["corrupt"], "corrupt or quarantined; `salus show` says what is wrong"),
        (document["salvaged"], "salvaged after a crash"),
        (document["unfinished"], "unfinished: still recording, or left by a crash (or its record is gone)"),
    ):
        if count:
            console.print(f"{count} {what}", style="yellow", markup=False)
    outcomes = table("outcome", ">episodes", "by kind")
    for result, counts in document["outcomes"].items():
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(counts["kinds"].items()))
        outcomes.add_row(result, str(counts["episodes"]), text(kinds))
    features = table("feature", "dtype", "a step", "unit", "storage")
    for name, feature in document["features"].items():
        shape = " × ".join(map(str, feature["shape"])) or "scalar"
        clock = "" if feature["clock"] == STEP else f"; on {feature['clock']}"
        storage = text(f"{feature['storage']}{clock}")
        features.add_row(text(name, "cyan"), feature["dtype"], shape, text(feature.get("unit", "")), storage)
    for part in (outcomes, features):
        if part.row_count:
            console.print()
            console.print(part)
    console.print()
    horizons = Horizons(tuple(document["horizons"]["values"]), document["horizons"]["unit"])
    if len(horizons):
        console.print(f"label horizons: {', '.join(f'{value:g}' for value in horizons.values)} {horizons.unit}")
    console.print(text(f"tags: {', '.join(document['tags']) or 'none'}"))


# --- episodes --------------------------------------------------------------------------------------------------


def episode_rows(dataset: Dataset, *, outcome: Any, failure_kind: str | None, task: str | None) -> list[dict[str, Any]]:
    """The content of `salus ls`."""
    chosen = dataset.select(outcome=outcome, failure_kind=failure_kind, task=task)
    numbers = {uid: number for number, uid in enumerate(dataset.episodes["uid"])}
    columns = chosen.episodes.to_dict()
    return [
        {"episode": numbers[row[0]], **dict(zip(columns, row, strict=True))}
        for row in zip(*columns.values(), strict=True)
    ]


def print_episodes(rows: list[dict[str, Any]], *, total: int) -> None:
    """`salus ls` for people."""
    wide = console.width >= _WIDE
    listing = table(">#", "uid", ">steps", "outcome", *(["task", "started"] if wide else []))
    for column in listing.columns:
        column.no_wrap = True
    for row in rows:
        outcome = Outcome(row["outcome"], row["failure_kind"], row["failure_step"])
        ended = describe(outcome) if row["status"] == "committed" else f"{describe(outcome)}, {row['status']}"
        style = {"success": "green", "failure": "red"}.get(row["outcome"], "")
        cells: list[Text | str] = [str(row["episode"]), text(row["uid"]), str(row["num_steps"]), text(ended, style)]
        if wide:
            cells += [text(row["task"] or ""), when(row["started_ns"])]
        listing.add_row(*cells)
    if wide:  # the task alone gives way on a narrow terminal
        others = [column for column in listing.columns if column.header != "task"]
        taken = sum(max(len(str(cell)) for cell in (column.header, *column.cells)) + 2 for column in others)
        listing.columns[-2].max_width = max(console.width - taken - 2, 8)
    console.print(listing)
    if len(rows) < total:
        console.print(f"… {total - len(rows)} more; --limit 0 shows all", style="dim")
    elif not rows:
        console.print("no episodes", style="dim")


def when(time_ns: int) -> str:
    """A wall-clock time for people, in local time."""
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time_ns else ""


# --- one episode -----------------------------------------------------------------------------------------------


def describe_episode(episode: Episode) -> dict[str, Any]:
    """The content of `salus show`."""
    return {
        "uid": episode.uid,
        "slot": episode.slot,
        "status": episode.status,
        "outcome": episode.outcome.to_json(),
        "num_steps": len(episode),
        "stored_bytes": episode.stored_bytes,
        "metadata": episode.metadata,
        "time": _describe_clock(episode, STEP),
        "clocks": {
            clock: {"num_steps": length, "rate_hz": episode.schema.rate_of(clock), **_describe_clock(episode, clock)}
            for clock, length in episode.clock_lengths.items()
        },
        "features": {
            name: _describe_values(episode, name, feature) for name, feature in episode.schema.features.items()
        },
    }


def _describe_clock(episode: Episode, clock: str) -> dict[str, Any]:
    stamps = episode.timestamps(clock)
    periods_ms = np.diff(stamps) / 1e6
    return {
        "source": episode.timestamp_sources.get(clock),  # None where it has no steps
        "duration_s": float(stamps[-1] - stamps[0]) / 1e9 if len(stamps) else 0.0,
        "median_period_ms": float(np.median(periods_ms)) if len(periods_ms) else None,
        "longest_period_ms": float(periods_ms.max()) if len(periods_ms) else None,
    }


def _describe_values(episode: Episode, name: str, feature: Feature) -> dict[str, Any]:
    values = episode[name][:]
    described: dict[str, Any] = {"dtype": feature.dtype, "shape": list(values.shape), "unit": feature.unit}
    if feature.kind == "text":
        return {**described, "first": str(values[0]) if len(values) else ""}
    described |= _statistics(values)
    if len(feature.shape) == 1 and feature.kind == "array":
        names = feature.names or tuple(f"[{component}]" for component in range(feature.shape[0]))
        described["components"] = {
            component: {**_statistics(values[:, row]), "course": sparkline(values[:, row])}
            for row, component in enumerate(names)
        }
    return described


def _statistics(values: np.ndarray) -> dict[str, Any]:
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if known.size == 0:
        return {"min": None, "mean": None, "max": None}
    return {"min": float(known.min()), "mean": float(known.mean(dtype=np.float64)), "max": float(known.max())}


def sparkline(values: np.ndarray) -> str:
    """The course of (T,) numbers in a few characters; `·` where there is no finite value."""
    if not len(values):
        return ""
    parts = [part for part in np.array_split(values.astype(np.float64), min(_SPARK_WIDTH, len(values))) if len(part)]
    means = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts])
    low, high = (np.nanmin(means), np.nanmax(means)) if np.isfinite(means).any() else (0.0, 0.0)
    scaled = (means - low) / (high - low) if high > low else np.zeros_like(means)
    return "".join(
        "·" if np.isnan(m) else _SPARKS[int(s * (len(_SPARKS) - 1))] for m, s in zip(means, scaled, strict=True)
    )


def print_episode(document: dict[str, Any]) -> None:
    """`salus show` for people."""
    outcome, time = Outcome.from_json(document["outcome"]), document["time"]
    console.print(text(f"episode {document['uid']}", "bold"))
    console.print(text(f"{describe(outcome)}; {document['status']}, slot {document['slot']}"))
    console.print(f"{document['num_steps']} steps{_pace(time)}")
    for clock, about in document["clocks"].items():
        pace = _pace(about) if about["num_steps"] else ""
        console.print(text(f"clock {clock}, {about['rate_hz']:g} Hz: {_count(about['num_steps'], 'step')}{pace}"))
    console.print(f"{size(document['stored_bytes'])} on disk")
    for key, value in document["metadata"].items():
        console.print(text(f"{key}: {value}"))
    console.print()
    features = table("feature", ">min", ">mean", ">max", "course")
    for column in features.columns:
        column.no_wrap = True
    for name, feature in document["features"].items():
        _add_feature(features, name, feature)
    console.print(features)


def _pace(time: dict[str, Any]) -> str:
    period = time["median_period_ms"]
    pace = f", a step every {period:.3g} ms (longest {time['longest_period_ms']:.3g} ms)" if period is not None else ""
    source = {"rate": "nominal, from the rate", "caller": "from the caller"}.get(time["source"], "recorder's clock")
    return f" in {time['duration_s']:.3g} s{pace}; stamps: {source}"


def _extremes(steps: dict[str, Any]) -> str:
    return f"(shortest {steps['shortest']}, median {steps['median']:g}, longest {steps['longest']})"


def _add_feature(features: Table, name: str, feature: dict[str, Any]) -> None:
    unit = f" {feature['unit']}" if feature["unit"] else ""
    title = text(f"{name} {tuple(feature['shape'])}{unit}", "cyan")
    if "first" in feature:
        features.add_row(title, "", "", "", text(feature["first"]))
        return
    components = feature.get("components", {})
    features.add_row(title, *([] if components else [_number(feature[key]) for key in ("min", "mean", "max")]))
    for component, values in components.items():
        numbers = [_number(values[key]) for key in ("min", "mean", "max")]
        features.add_row(text(f"  {component}"), *numbers, values["course"])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
