"""What `salus stats` says, as a document for --json and as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..schema import Feature, Image
from ..statistics import FeatureStatistics
from ..view import DatasetView
from .terminal import console, table, text

QUANTILES = (0.01, 0.5, 0.99)

_CHANNELS = {"rgb": ("red", "green", "blue"), "bgr": ("blue", "green", "red"), "gray": ("gray",)}


def describe_statistics(view: DatasetView, names: Iterable[str] | None) -> dict[str, Any]:
    """The content of `salus stats`."""
    merged = view.statistics(names)
    return {
        "path": view.url,
        "episodes": len(view),
        "steps": view.num_steps,
        "features": {name: _describe(found, view.schema.features[name]) for name, found in merged.items()},
    }


def _describe(found: FeatureStatistics, feature: Feature) -> dict[str, Any]:
    quantiles = dict(zip(QUANTILES, found.quantile(QUANTILES), strict=True))
    columns: dict[str, np.ndarray] = {
        "count": found.count,
        "mean": found.mean,
        "std": found.std,
        "min": found.min,
        **{f"q{round(100 * share):02d}": values for share, values in quantiles.items()},
        "max": found.max,
        "nan": found.num_nan,
        "infinite": found.num_infinite,
    }
    return {
        "unit": feature.unit,
        "over": found.over,
        "every": found.every,
        "rank_error": found.rank_error,
        "components": _components(feature, found),
        **{name: values.ravel().tolist() for name, values in columns.items()},
    }


def _components(feature: Feature, found: FeatureStatistics) -> list[str]:
    """A name for each number: of the schema, of a channel, else its place."""
    if isinstance(feature, Image):
        return list(_CHANNELS[feature.color])
    if found.mean.shape == ():
        return [""]
    return list(feature.names or (str(list(place)) for place in np.ndindex(found.mean.shape)))


def print_statistics(document: dict[str, Any]) -> None:
    """`salus stats` for people."""
    console.print(text(document["path"], "bold"))
    columns = ("mean", "std", "min", *(f"q{round(100 * share):02d}" for share in QUANTILES), "max")
    listing = table("feature", *(f">{name}" for name in columns), ">left out")
    for column in listing.columns:
        column.no_wrap = True
    for name, feature in document["features"].items():
        unit = f" {feature['unit']}" if feature["unit"] else ""
        several = len(feature["components"]) > 1 or feature["components"][0]
        if several:
            listing.add_row(text(f"{name}{unit}", "cyan"))
        for place, component in enumerate(feature["components"]):
            left_out = feature["nan"][place] + feature["infinite"][place]
            numbers = [_number(feature[column][place]) for column in columns]
            title = text(f"  {component}") if several else text(f"{name}{unit}", "cyan")
            listing.add_row(title, *numbers, str(left_out) if left_out else "")
    console.print(f"{document['episodes']} episodes, {document['steps']} steps\n")
    console.print(listing)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g}"
