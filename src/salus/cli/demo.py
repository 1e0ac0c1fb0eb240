"""The summary that `salus demo` ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .terminal import console, size, table, text

if TYPE_CHECKING:
    from ..demo.main import Report


ENOUGH_FAILURES = 6


def print_report(report: Report) -> None:
    """What the demo found, on one screen."""
    path = report.path
    console.print()
    console.print(text(f"{path}: {sum(report.episodes.values())} episodes, {report.recorded} of them new", "bold"))
    outcomes = ", ".join(f"{count} {name}" for name, count in report.episodes.items())
    facts = table("", "")
    facts.show_header = False
    facts.add_row("outcomes", outcomes)
    facts.add_row(
        "size",
        f"{size(report.size.stored)} for {size(report.size.raw)} raw: {report.size.ratio:.1f} × smaller, lossless",
    )
    facts.add_row(
        "recorded",
        f"{report.record_steps_per_s:.0f} steps/s, simulation and rendering included; "
        f"{report.record_share:.1%} of that time inside append and commit",
    )
    facts.add_row("loaded", f"{report.load_images_per_s:.0f} random 224 × 224 images/s, in batches of 64")
    facts.add_row("checked", "every byte read back, values equal through plain zarr-python")
    facts.add_row("picture", text(report.picture))
    facts.add_row("time", f"{report.seconds:.0f} s")
    console.print(facts)
    console.print()
    _print_scores(report)
    console.print("[bold]Next[/bold]")
    for command in (
        f"salus show {path} -1 --picture episode.png",
        f"salus ls {path} --outcome failure",
        f'python -c \'import zarr; print(zarr.open("{path}")["images"][0, 10:20].shape)\'',
    ):
        console.print(text(f"  {command}", "cyan"), soft_wrap=True)


def _print_scores(report: Report) -> None:
    scores = report.scores
    if scores is None:
        console.print("Too few failed episodes to train and to judge a predictor: run it again to add some.")
        console.print()
        return
    auroc = table("failure within", ">AUROC", ">knowing only the time", title="Failure predictor, on held-out episodes")
    for horizon, value in scores.auroc.items():
        auroc.add_row(f"{horizon:g} steps", f"{value:.3f}", f"{scores.baseline_auroc[horizon]:.3f}")
    console.print(auroc)
    if scores.num_failures < ENOUGH_FAILURES:
        console.print(
            f"Only {scores.num_failures} held-out failures: these figures are noise. Run it again to add episodes.",
            style="yellow",
        )
    lead = f", {scores.lead_s:.2f} s ahead (median)" if scores.num_warned else ""
    console.print(
        f"{scores.num_warned} of {scores.num_failures} failures announced{lead}; "
        f"{scores.false_alarms:.2f} false alarms per episode ({scores.num_episodes} held-out episodes)"
    )
    console.print()
