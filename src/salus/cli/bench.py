"""How `salus bench` shows what it measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from ..bench.many import Many
from ..bench.report import demands, number, rows
from ..bench.run import Results
from .terminal import console, plain, size, table


def print_results(results: Results, many: Sequence[Many]) -> None:
    """One table per work, then sizes, then the ratios that are promised."""
    about = results.about
    console.print(
        f"{plain(about['source'])}: {about['steps']} steps, {size(about['raw_bytes'])} raw; {about['rounds']} rounds, "
        f"{about['threads']} threads each; {about['machine']}",
        highlight=False,
    )
    for words, unit, contestants in rows(results):
        shown = table(words, f">{unit}", ">SALUS is")
        for title, rate, ratio, note in contestants:
            style = "bold" if title == "SALUS" else ""
            times = "" if ratio is None or title == "SALUS" else f"{number(ratio)} ×"
            shown.add_row(
                Text(title, style=style), Text(number(rate) if rate is not None else note, style=style), times
            )
        console.print()
        console.print(shown)
    sizes = table("on disk, and in memory while training", ">size", ">smaller than raw", ">files", ">memory")
    for name, values in results.sizes.items():
        stored, files, memory = values["bytes"], values["files"], values["memory_bytes"]
        smaller = values["times_smaller"]
        sizes.add_row(
            results.titles[name],
            "" if stored is None else size(stored),
            "" if smaller is None else f"{number(smaller)} ×",
            "" if files is None else f"{files:,.0f}",
            "" if memory is None else size(memory),
        )
    console.print()
    console.print(sizes)
    measured = [(demand, ratio) for demand, ratio in demands(results) if ratio is not None]
    if measured:
        promised = table("ratios that SALUS promises on two cores", ">at least", ">here")
        for demand, ratio in measured:
            style = "" if ratio >= demand.at_least else "red"
            promised.add_row(demand.words, f"{demand.at_least:g} ×", Text(f"{number(ratio)} ×", style=style))
        console.print()
        console.print(promised)
    if many:
        shown = table(
            f"{many[0].num_episodes} short episodes", ">write", ">load one", ">load all", ">size", ">images/s"
        )
        for row in many:
            seconds = f"{row.write_s:.1f} s", f"{row.one_s * 1e3:.1f} ms", f"{row.all_s:.1f} s"
            shown.add_row(row.title, *seconds, size(row.stored_bytes), number(row.images_per_s))
        console.print()
        console.print(shown)
    for title, reason in results.absent.items():
        console.print(f"{title} took no part: {reason}", style="dim", highlight=False)
