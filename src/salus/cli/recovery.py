"""What `recover` says to people."""

from __future__ import annotations

from datetime import datetime

from ..recorder.recovery import RecoveredEpisode, RecoveryReport
from .terminal import console, plain

_STYLES = {"salvaged": "green", "aborted": "yellow", "left": ""}


def print_recovery(report: RecoveryReport) -> None:
    """A line per episode, then the sums."""
    would = "would be " if report.dry_run else ""
    for episode in report.episodes:
        line = f"slot {episode.slot}  {episode.uid}  {'' if episode.action == 'left' else would}{_what(episode)}"
        console.print(plain(line), style=_STYLES[episode.action], markup=False, highlight=False, soft_wrap=True)
    if not report.episodes:
        console.print("nothing to recover", highlight=False)
        return
    saved = sum(episode.num_steps for episode in report.salvaged)
    console.print(
        f"{would}salvaged: {len(report.salvaged)} with {saved} steps; aborted: {len(report.aborted)}; "
        f"left: {len(report.left)}",
        highlight=False,
    )


def _what(episode: RecoveredEpisode) -> str:
    if episode.action == "left":
        return f"left: {episode.reason}"
    lost = "an unknown number of steps" if episode.lost_steps is None else f"{episode.lost_steps} steps"
    lost = "" if episode.lost_steps == 0 else f", {lost} lost"
    if episode.action == "aborted":
        return f"aborted: {episode.reason}{lost}"
    times = [datetime.fromtimestamp(ns / 1e9).astimezone() for ns in (episode.started_ns, episode.stopped_ns)]
    recorded = f"recorded {times[0]:%Y-%m-%d %H:%M:%S} to {times[1]:%H:%M:%S}"
    return "; ".join([f"salvaged: {episode.num_steps} steps saved{lost}", recorded, *episode.remarks])
