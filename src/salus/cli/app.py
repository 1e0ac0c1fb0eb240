"""The commands of `salus`, and how their errors become exit statuses."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..dataset import Dataset
from ..errors import InvalidInputError, SalusError
from ..opening import create, open
from ..storage import is_url
from .copying import print_copy, split_tag
from .demo import print_report
from .describe import describe_dataset, describe_episode, episode_rows, print_dataset, print_episode, print_episodes
from .recovery import print_recovery
from .stats import describe_statistics, print_statistics
from .terminal import errors, plain, print_json, progress, track
from .verification import print_verification

EXIT_STATUSES = """Exit status: 0 done, 1 other, 2 wrong argument, 3 not found, 4 exists already, 5 not a SALUS dataset,
6 data changed or missing, 7 recording failed, 8 an extra is not installed, 9 the storage cannot be read,
10 recovered, but steps were lost, 11 verified, and committed data is damaged, 12 verified, and only what no data
depends on is wrong, 13 check found what --fail-on names."""
SOMETHING_WAS_LOST = 10
IS_DAMAGED = 11
IS_NOT_CLEAN = 12
IS_NOT_HEALTHY = 13

app = typer.Typer(
    help="Episodes for robot learning, in plain Zarr v3.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PathArgument = Annotated[str, typer.Argument(help="The dataset, such as data.zarr.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, for scripts.")]
TagOption = Annotated[str | None, typer.Option("--tag", help="Look at this tag instead of the newest state.")]


def _example(*lines: str) -> str:
    return "[bold]Example[/bold]\n\n" + "\n\n".join(f"  [cyan]{line}[/cyan]" for line in lines)


@app.command(epilog=_example("salus demo", "salus demo my.zarr --episodes 200 --processes 4"))
def demo(
    path: Annotated[str, typer.Argument(help="Where the dataset is, or will be: a local path.")] = "demo.zarr",
    episodes: Annotated[int, typer.Option(help="Episodes to record in this run.", min=1)] = 80,
    processes: Annotated[int, typer.Option(help="Processes that record at once.", min=1)] = 2,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.", min=1)] = 40,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Record rendered pick-and-place episodes, check them, and train a failure predictor.

    A second run in the same folder adds episodes.
    """
    from ..demo.main import run_demo

    if is_url(path):
        raise InvalidInputError(f"demo: got {path}, expected a local path; salus push copies it into a bucket then")
    report = run_demo(
        Path(path), num_episodes=episodes, num_processes=processes, num_epochs=epochs, seed=seed, progress=track
    )
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)


@app.command(
    epilog=_example("salus record --demo", "salus record cameras.zarr --demo --seconds 60 --rate 100 --codec jpeg")
)
def record(
    path: Annotated[str, typer.Argument(help="Where the dataset is, or will be.")] = "cameras.zarr",
    demo: Annotated[bool, typer.Option("--demo", help="Record synthetic cameras; nothing else is there yet.")] = False,
    seconds: Annotated[float, typer.Option(help="How long.", min=0.01)] = 10,
    rate: Annotated[float, typer.Option(help="Steps per second.", min=0.1, max=10_000)] = 50,
    cameras: Annotated[int, typer.Option(help="RGB cameras.", min=1)] = 3,
    height: Annotated[int, typer.Option(help="Of an image, pixels.", min=1, max=8192)] = 480,
    width: Annotated[int, typer.Option(help="Of an image, pixels.", min=1, max=8192)] = 640,
    codec: Annotated[str, typer.Option(help="zstd (lossless) or jpeg.")] = "zstd",
    when_full: Annotated[str, typer.Option(help="When the queue is full: block or drop.")] = "block",
    as_json: JsonOption = False,
) -> None:
    """Record synthetic cameras at a fixed rate, and show live how long each `append` takes.

    Ctrl-C ends the recording early; what was recorded is kept. A second run adds an episode, with the same options.
    """
    from ..bench.latency import Cameras
    from ..bench.latency import record as record_cameras
    from .record import print_run, shown

    if not demo:
        raise typer.BadParameter("only --demo is there; your own robot records with salus.Recorder, in Python")
    if codec not in ("zstd", "jpeg") or when_full not in ("block", "drop"):
        raise typer.BadParameter(
            f"got --codec {codec} --when-full {when_full}, expected zstd or jpeg, and block or drop"
        )
    source = Cameras(cameras, height, width, rate_hz=rate, codec=codec)  # type: ignore[arg-type]  # looked at above
    dataset = create(path, source.schema(), exist_ok=True)
    with shown() as show:
        result = record_cameras(
            dataset,
            source,
            seconds=seconds,
            when_full=when_full,  # type: ignore[arg-type]  # looked at above
            on_start=None if as_json else show.start,
        )
    if as_json:
        print_json({"path": path, **result.to_json()})
    else:
        print_run(result, path)


@app.command(epilog=_example("salus info data.zarr", "salus info data.zarr --json | jq .episodes"))
def info(path: PathArgument, tag: TagOption = None, as_json: JsonOption = False) -> None:
    """What a dataset holds: features, episodes by outcome, size, tags, and what is unfinished."""
    document = describe_dataset(_open(path, tag))
    if as_json:
        print_json(document)
    else:
        print_dataset(document)


@app.command(epilog=_example("salus ls data.zarr --outcome failure --kind drop", "salus ls data.zarr --limit 0 --json"))
def ls(
    path: PathArgument,
    outcome: Annotated[str | None, typer.Option(help="success, failure or unknown.")] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of failure.")] = None,
    task: Annotated[str | None, typer.Option(help="Task, exactly.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Rows to show; 0 shows all.", min=0, show_default="20, with --json all")
    ] = None,
    tag: TagOption = None,
    as_json: JsonOption = False,
) -> None:
    """List episodes, with the number by which `show` and `dataset[…]` take them."""
    rows = episode_rows(_open(path, tag), outcome=outcome, failure_kind=kind, task=task)
    if limit is None:
        limit = 0 if as_json else 20
    shown = rows[:limit] if limit else rows
    if as_json:
        print_json(shown)
    else:
        print_episodes(shown, total=len(rows))


@app.command(
    epilog=_example("salus show data.zarr 42", "salus show data.zarr -1 --picture episode.png"),
    context_settings={"ignore_unknown_options": True},  # -1 is an episode, not an option
)
def show(
    path: PathArgument,
    episode: Annotated[str, typer.Argument(help="Number (negative from the end) or uid.", show_default=False)],
    picture: Annotated[Path | None, typer.Option(help="Also save a contact sheet: .png, .svg or .pdf.")] = None,
    tag: TagOption = None,
    as_json: JsonOption = False,
) -> None:
    """One episode: outcome, metadata, time, and every feature with its range and course."""
    if episode.startswith("-") and not episode[1:].isdigit():
        raise typer.BadParameter(f"no such option: {episode}")
    if picture is not None:
        from ..demo.picture import check_picture

        check_picture(picture)
    dataset = _open(path, tag)
    chosen = dataset[int(episode) if episode.lstrip("-").isdigit() else episode]
    document = describe_episode(chosen)
    if as_json:
        print_json(document)
    else:
        print_episode(document)
    if picture is not None:
        from ..demo.picture import contact_sheet

        contact_sheet(chosen, picture)
        errors.print(f"saved {plain(picture)}", markup=False, highlight=False)


@app.command(epilog=_example("salus stats data.zarr", "salus stats data.zarr --feature actions --json"))
def stats(
    path: PathArgument,
    feature: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.", show_default="all")
    ] = None,
    tag: TagOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mean, spread, extremes and quantiles of every feature, over all episodes, from their records.

    Per component; of images per channel; of features with more than 64 components over all of them. NaN and infinity
    are left out, and counted. Episodes whose record does not hold are left out, too.
    """
    document = describe_statistics(_open(path, tag).select(status=("committed", "salvaged")), feature or None)
    if as_json:
        print_json(document)
    else:
        print_statistics(document)


@app.command(epilog=_example("salus recover data.zarr", "salus recover data.zarr --dry-run --json"))
def recover(
    path: PathArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also abort episodes of other hosts, and those that cannot be understood.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring back the episodes of recorders that died; those of recorders that live are left alone.

    What comes back has the status "salvaged". Exit status 10 says that steps which had been written are lost.
    """
    from ..recorder.recovery import recover as run

    report = run(path, force=force, dry_run=dry_run)
    if as_json:
        print_json(report.to_json())
    else:
        print_recovery(report)
    if report.something_was_lost:
        raise typer.Exit(SOMETHING_WAS_LOST)


@app.command(
    epilog=_example(
        "salus verify data.zarr", "salus verify data.zarr --episode 42 --episode -1", "salus verify data.zarr --repair"
    ),
)
def verify(
    path: PathArgument,
    episode: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, by number or uid; may be repeated.", show_default="the whole dataset"),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only the episodes of this tag.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what loses nothing; keep readers from damaged episodes.")
    ] = False,
    expect: Annotated[
        str | None, typer.Option(help="The root digest that was printed before, sha256:…; another one is damage.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that read.", min=1, show_default="one per core")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find every byte that is not what was committed: where it is, and what to do about it.

    Reads every shard once. Exit status 11 says that committed data is damaged; 12 that only what is built from it, or
    what belongs to nothing, is wrong.
    """
    from ..verification import verify as run

    chosen = [int(name) if name.lstrip("-").isdigit() else name for name in episode or ()]
    with progress("verifying") as show:
        report = run(
            path, episodes=chosen or None, tag=tag, repair=repair, expect=expect, threads=threads, on_progress=show
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_verification(report)
    if not report.is_whole:
        raise typer.Exit(IS_DAMAGED if report.is_damaged else IS_NOT_CLEAN)


@app.command("pull", epilog=_example("salus pull s3://lab-data/data.zarr data.zarr"))
@app.command("push", epilog=_example("salus push data.zarr s3://lab-data/data.zarr"))
@app.command(
    "cp",
    epilog=_example(
        "salus cp data.zarr s3://lab-data/data.zarr", "salus cp s3://lab-data/data.zarr@v1 v1.zarr --dry-run"
    ),
)
def cp(
    source: Annotated[
        str, typer.Argument(help="The dataset; DATASET@TAG copies that tag.", metavar="SOURCE", show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(help="Nothing, or an earlier copy of it.", metavar="TARGET", show_default=False)
    ],
    threads: Annotated[int, typer.Option(help="Episodes that are copied at a time.", min=1)] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a dataset between disks and buckets; again, to bring over what is new. push and pull are words for cp.

    Every shard is checked on the way. Exit status 11 says that damaged episodes were left out.
    """
    from ..copying import copy

    path, tag = split_tag(source)
    with progress("copying") as show:
        report = copy(path, target, tag=tag, threads=threads, dry_run=dry_run, on_progress=show)
    if as_json:
        print_json(report.to_json())
    else:
        print_copy(report)
    if report.problems:
        raise typer.Exit(IS_DAMAGED)


@app.command(
    epilog=_example(
        "salus check data.zarr --html report.html",
        "salus check data.zarr --skip nominal_stamps --set clock_gap.least_s=0.2 --fail-on warning",
        "salus check data.zarr --split train=0.9 --split val=0.1 --json",
    )
)
def check(
    path: PathArgument,
    tag: TagOption = None,
    html: Annotated[Path | None, typer.Option(help="Also save the report as a page with small plots.")] = None,
    fail_on: Annotated[
        str | None, typer.Option(help="Exit with status 13 where there is an error, or a warning.", metavar="SEVERITY")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A rule to leave out; may be repeated.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="RULE.THRESHOLD=NUMBER; may be repeated.", metavar="CHANGE")
    ] = None,
    rules: Annotated[list[Path] | None, typer.Option(help="A Python file with rules of your own; it is run.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="PART=SHARE of a split that is to be looked at; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads that read.", min=1, show_default="one per core")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find values that are not as they should be: NaN, dead sensors, frozen cameras, gaps, labels that contradict.

    Reads all values once. `verify` looks at the bytes instead.
    """
    from .check import print_health, run_check

    if fail_on not in (None, "error", "warning"):
        raise typer.BadParameter(f"--fail-on: got {fail_on}, expected error or warning")
    with progress("checking") as show:
        report = run_check(
            _open(path, tag),
            skip=skip or [],
            changes=set_ or [],
            files=rules or [],
            split=split or [],
            seed=seed,
            threads=threads,
            on_progress=show,
        )
    if html is not None:
        html.write_text(report.to_html(), encoding="utf-8")
        errors.print(f"saved {plain(html)}", markup=False, highlight=False)
    if as_json:
        print_json(report.to_json())
    else:
        print_health(report)
    if fail_on is not None and report.fails_on(fail_on):
        raise typer.Exit(IS_NOT_HEALTHY)


@app.command(
    epilog=_example("salus bench", "salus bench data.zarr --only tensorstore --only hdf5-gzip", "salus bench --json")
)
def bench(
    path: Annotated[
        str | None, typer.Argument(help="Measure with its first episodes; else with rendered ones.")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Episodes that everybody stores.", min=2)] = 12,
    rounds: Annotated[int, typer.Option(help="How often each measurement is taken.", min=1)] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="A contestant, besides SALUS; may be repeated.", show_default="all")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each contestant.", min=1)] = 2,
    seconds: Annotated[float, typer.Option(help="What a measurement lasts at least.", min=0.01)] = 0.5,
    work: Annotated[Path, typer.Option(help="Folder for all files; they stay, the next run writes them anew.")] = Path(
        "bench.tmp"
    ),
    chart: Annotated[list[Path] | None, typer.Option(help="Also save a chart: .svg, .png or .pdf.")] = None,
    many: Annotated[
        int, typer.Option(help="Also write and read so many short episodes, in HDF5 as well; 500 take minutes.", min=0)
    ] = 0,
    page: Annotated[Path | None, typer.Option(help="Also write all of it as a Markdown page.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write and read the same episodes through SALUS and all other formats that are installed, and compare.

    Measured are recording, one episode, all episodes, random images, and training samples (each camera at one step, 16
    actions, batches of 64), in process and through the stock DataLoader; warm, and partly with a cold page cache; then
    sizes and memory. The default takes about ten minutes.

    Contestants: decoding, decoding-16, tensorstore, tensorstore-hwc, zarr, zarrs, diffusion-policy, note, hdf5,
    hdf5-gzip, lerobot-image, lerobot-video, webdataset, lance. The extra "bench" brings most, `make setup-lerobot`
    LeRobot.
    """
    from ..bench.many import measure_many
    from ..bench.page import page as write_page
    from ..bench.report import chart as draw
    from ..bench.run import chosen, run
    from ..bench.source import of_dataset, rendered
    from .bench import print_results

    kinds = chosen(only or [])
    source = of_dataset(open(path), episodes) if path is not None else rendered(episodes, work / "rendered", track)
    results = run(source, kinds, work, rounds=rounds, threads=threads, budget_s=seconds, track=track)
    rows = measure_many(source, work, num_episodes=many, threads=threads, track=track) if many else []
    if as_json:
        print_json({**results.to_json(), "many": [asdict(row) for row in rows]})
    else:
        print_results(results, rows)
    for target in chart or ():
        draw(results, target)
    if page is not None:
        picture = os.path.relpath(chart[0], page.parent) if chart else None
        page.write_text(write_page(results, rows, chart=picture), encoding="utf-8")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"salus {__version__}")
        raise typer.Exit


def _open(path: str, tag: str | None) -> Dataset:
    return open(path, tag=tag)


def main() -> Any:
    """Run the command; a `SalusError` or a wrong index becomes a message and its exit status."""
    try:
        app()
    except SalusError as error:
        _fail(error, error.exit_status)
    except IndexError as error:
        _fail(error, 3)
    except BrokenPipeError:  # `salus ls … | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: Exception, status: int) -> None:
    lines = str(error).splitlines()
    errors.print("error:", style="bold red", end=" ")
    errors.print("\n".join(map(plain, lines)), markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)
