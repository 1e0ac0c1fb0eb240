"""One episode on one sheet: images over time, signals, labels, and what a predictor says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..episode import Episode, describe
from ..errors import InvalidInputError, MissingExtraError
from ..schema import Feature, Image

NUM_IMAGES = 8
MAX_CURVES = 12
INK, MUTED, ALERT, CALM = "#1f2933", "#7b8794", "#d64545", "#2f6fab"


def contact_sheet(episode: Episode, file: Path, *, risk: np.ndarray | None = None) -> None:
    """Save a picture of an episode.

    Args:
        episode: What to show.
        file: PNG, SVG or PDF, by its suffix.
        risk: float (T, H), predicted probability of a failure within each label horizon; optional.

    Raises:
        InvalidInputError: The suffix is of no picture.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.of("a picture", extra="picture") from error
    check_picture(file)
    cameras = [name for name, feature in episode.schema.features.items() if isinstance(feature, Image)]
    curves = _curves(episode)
    style: Any = {"font.size": 8, "axes.edgecolor": "#cbd2d9", "text.color": INK, "axes.labelcolor": INK}
    with mpl.rc_context({**style, "xtick.color": MUTED, "ytick.color": MUTED, "font.family": "DejaVu Sans"}):
        steps = _image_steps(episode)
        sheet = _Sheet(Figure, _heights(episode, cameras, curves, risk))
        task = f"{episode.metadata['task']}: " if "task" in episode.metadata else ""
        sheet.figure.text(0.012, 1 - 0.3 / sheet.height, f"{task}{describe(episode.outcome)}", fontsize=13, va="center")
        for camera in cameras:
            _draw_images(sheet.images(len(steps)), episode, camera, steps)
        for name, values in curves:
            _draw_curve(sheet.row(), episode, name, values, steps)
        if len(episode.schema.label_horizons):
            _draw_labels(sheet.row(), episode)
        if risk is not None:
            _draw_risk(sheet.row(), episode, risk)
        sheet.axes[-1].set_xlabel("step", color=MUTED)
        sheet.axes[-1].tick_params(bottom=True, labelbottom=True)
        sheet.figure.savefig(file, dpi=110)


def check_picture(file: Path) -> None:
    """Raise InvalidInputError unless `file` is named as a picture."""
    if file.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidInputError(f"picture: got {file.name!r}, expected a name that ends in .png, .svg or .pdf")
    if not file.absolute().parent.is_dir():
        raise InvalidInputError(f"picture: no folder {file.parent}; make it first")


def _heights(
    episode: Episode, cameras: list[str], curves: list[tuple[str, np.ndarray]], risk: np.ndarray | None
) -> list[float]:
    """Inches of each row, its margin above included."""
    has_labels = len(episode.schema.label_horizons) > 0
    return [1.75] * len(cameras) + [0.42] * len(curves) + [1.05] * has_labels + [1.55] * (risk is not None)


class _Sheet:
    """A figure with rows that share one time axis."""

    WIDTH, LEFT, RIGHT, TOP, BOTTOM = 12.0, 1.45, 1.15, 0.5, 0.5

    def __init__(self, figure_class: Any, heights: list[float]) -> None:
        self.height = sum(heights) + self.TOP + self.BOTTOM
        self.figure = figure_class(figsize=(self.WIDTH, self.height))
        self.axes: list[Any] = []
        self._heights = iter(heights)
        self._top = self.height - self.TOP

    def _next(self, left: float, right: float, count: int = 1) -> list[Any]:
        height = next(self._heights)
        gap = 0.06 if height < 1 else 0.28
        width = (self.WIDTH - left - right) / count
        axes = [
            self.figure.add_axes(
                (
                    (left + place * width) / self.WIDTH,
                    (self._top - height) / self.height,
                    (width - (0.06 if count > 1 else 0)) / self.WIDTH,
                    (height - gap) / self.height,
                )
            )
            for place in range(count)
        ]
        self._top -= height
        return axes

    def row(self) -> Any:
        """Axes over the whole time axis."""
        self.axes += self._next(self.LEFT, self.RIGHT)
        self.axes[-1].tick_params(bottom=False, labelbottom=False)
        return self.axes[-1]

    def images(self, count: int) -> list[Any]:
        """Axes side by side, for images."""
        return self._next(0.14, 0.08, count)


def _image_steps(episode: Episode) -> list[int]:
    """Steps to show: evenly spread, but with the moment of failure and the one before among them."""
    steps = np.linspace(0, len(episode) - 1, NUM_IMAGES).round().astype(int).tolist()
    failure = episode.outcome.step
    if failure is not None and len(episode) > NUM_IMAGES:
        reach = min(failure, len(episode) - 1)
        steps = [*np.linspace(0, reach, NUM_IMAGES - 1).round().astype(int).tolist(), len(episode) - 1]
    return sorted(set(steps))


def _curves(episode: Episode) -> list[tuple[str, np.ndarray]]:
    """(name, values (T,)) of the components to draw: `signals` where there are any, else whatever numbers there are."""
    features = {
        name: feature
        for name, feature in episode.schema.recorded.items()
        if feature.kind == "array" and len(feature.shape) <= 1
    }
    curves: list[tuple[str, np.ndarray]] = []
    for name in ["signals"] if "signals" in features else list(features):
        values = episode[name][:].reshape(len(episode), -1)
        curves += [(_component(features[name], name, part), values[:, part]) for part in range(values.shape[1])]
    return curves[:MAX_CURVES]


def _component(feature: Feature, name: str, component: int) -> str:
    if feature.names is not None:
        return feature.names[component].replace("_", " ")
    return f"{name}[{component}]" if feature.shape else name


def _draw_images(axes: list[Any], episode: Episode, camera: str, steps: list[int]) -> None:
    feature = episode.schema.features[camera]
    assert isinstance(feature, Image)  # noqa: S101 - for the type checker; the caller chose by it
    images = episode[camera][steps]
    if feature.layout == "CHW":
        images = images.transpose(0, 2, 3, 1)
    if feature.color == "bgr":
        images = images[..., ::-1]
    failure = episode.outcome.step
    for axis, image, step in zip(axes, images, steps, strict=True):
        axis.imshow(image.squeeze(), cmap="gray")
        axis.set(xticks=[], yticks=[])
        failed = failure is not None and step >= failure
        what = " · failure" if step == failure else ""
        axis.set_title(f"step {step}{what}", fontsize=8, color=ALERT if failed else MUTED, pad=3)
        for side in axis.spines.values():
            side.set(color=ALERT if failed else "#cbd2d9", linewidth=1.6 if failed else 0.8)


def _draw_curve(axis: Any, episode: Episode, name: str, values: np.ndarray, steps: list[int]) -> None:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    axis.plot(values, color=CALM, linewidth=1.0)
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    span = f"{finite.min():.3g} … {finite.max():.3g}" if finite.size else "no finite value"
    axis.text(1.006, 0.5, span, transform=axis.transAxes, va="center", fontsize=7, color=MUTED)
    axis.set(yticks=[], xlim=_time_axis(episode))
    axis.margins(y=0.15)
    axis.spines[["top", "right", "left"]].set_visible(False)
    for step in steps:
        axis.axvline(step, color="#e4e7eb", linewidth=0.6, zorder=0)
    _mark_failure(axis, episode)


def _time_axis(episode: Episode) -> tuple[float, float]:
    return -0.5, len(episode) - 0.5


def _draw_labels(axis: Any, episode: Episode) -> None:
    """One band per horizon: red where a failure is near, grey where nobody can know."""
    horizons = episode.schema.label_horizons
    near, known = np.any(episode.labels, axis=2), np.all(episode.labels_mask, axis=2)
    colors = np.where(known[..., None], np.where(near[..., None], (214, 69, 69), (222, 234, 244)), (203, 210, 217))
    axis.imshow(
        colors.transpose(1, 0, 2).astype(np.uint8),
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, len(episode) - 0.5, len(horizons) - 0.5, -0.5),
    )
    unit = "steps" if horizons.unit == "steps" else "s"
    axis.set_yticks(
        range(len(horizons)), [f"within {value:g} {unit}" for value in horizons.values], fontsize=8, color=INK
    )
    axis.set(xlim=_time_axis(episode))
    axis.set_title(
        "labels: failure near (red), not near (blue), not known (grey)", fontsize=8, loc="left", color=MUTED, pad=2
    )
    axis.tick_params(left=False)


def _draw_risk(axis: Any, episode: Episode, risk: np.ndarray) -> None:
    horizons = episode.schema.label_horizons
    unit = "steps" if horizons.unit == "steps" else "s"
    for column, value in enumerate(horizons.values):
        shade = 0.35 + 0.65 * (column + 1) / len(horizons)
        axis.plot(risk[:, column], color=ALERT, alpha=shade, linewidth=1.3, label=f"within {value:g} {unit}")
    axis.set(xlim=_time_axis(episode), ylim=(0, 1.02), yticks=[0, 0.5, 1])
    axis.set_title("predicted probability of a failure", fontsize=8, loc="left", color=MUTED, pad=2)
    axis.legend(loc="upper left", frameon=False, fontsize=7, ncols=len(horizons))
    axis.spines[["top", "right"]].set_visible(False)
    _mark_failure(axis, episode)


def _mark_failure(axis: Any, episode: Episode) -> None:
    if episode.outcome.step is not None:
        axis.axvline(episode.outcome.step, color=ALERT, linewidth=1.0, linestyle=(0, (3, 2)))
