"""The report as one HTML page: inline SVG and style, everything escaped, no script."""

from __future__ import annotations

import html
from collections.abc import Callable

from .findings import SEVERITIES, Finding, Group, HealthReport, Plot

WIDTH, HEIGHT = 320, 72
SHOWN = 12
"""Findings of a group that the page lists; the others are counted."""

_STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --soft: #5b6472; --line: #d8dce3; --back: #ffffff; --card: #f6f7f9;
  --error: #b3261e; --warning: #9a5b00; --info: #2b62a8; --plot: #3b6ea8; --mark: #d93025; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ec; --soft: #a0a8b5; --line: #3a404b; --back: #16191f;
  --card: #1f242c; --error: #ff8a80; --warning: #f5b95f; --info: #8ab8f5; --plot: #7fb0ea; --mark: #ff6b5e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 0; }
p { margin: .35rem 0; } code, .path { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.soft { color: var(--soft); } .counts { display: flex; gap: .75rem; flex-wrap: wrap; margin: 1.25rem 0; padding: 0; }
.counts li { list-style: none; padding: .5rem 1rem; border: 1px solid var(--line); border-radius: .5rem; }
.counts b { font-size: 1.4rem; margin-right: .35rem; }
.error { --severity: var(--error); } .warning { --severity: var(--warning); } .info { --severity: var(--info); }
.word { color: var(--severity); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--severity);
  border-radius: .5rem; padding: 1rem 1.25rem; margin: 1rem 0; }
.head { display: flex; gap: .75rem; align-items: baseline; flex-wrap: wrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .75rem 0 .25rem; }
figure { margin: 0; width: 296px; max-width: 100%; }
figcaption { font-size: .8rem; color: var(--soft); display: flex; justify-content: space-between; gap: .5rem; }
figcaption.top { color: var(--text); overflow-wrap: anywhere; } figcaption .soft { white-space: nowrap; }
figcaption.bottom { padding-left: 40px; }
svg { display: block; width: 100%; height: auto; background: var(--back); border: 1px solid var(--line);
  border-radius: .25rem; }
svg .line { fill: none; stroke: var(--plot); stroke-width: 1.2; } svg .bar { fill: var(--plot); }
svg .mark { fill: var(--mark); fill-opacity: .2; stroke: var(--mark); stroke-opacity: .45; stroke-width: 1; }
svg .marked { fill: var(--mark); }
svg .level { stroke: var(--soft); stroke-dasharray: 4 3; }
svg text { fill: var(--soft); font: 9px system-ui, sans-serif; }
ul.found { margin: .5rem 0 0; padding-left: 1.1rem; font-size: .92rem; } ul.found li { margin: .15rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
details { margin-top: 2rem; } summary { cursor: pointer; }
"""


def page(report: HealthReport) -> str:
    """The report as an HTML document."""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Health of {escape(report.url)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )
    sections = "\n".join(map(_section, report.groups()))
    empty = "" if len(report) else '<p class="soft">Nothing was found. What was looked for stands below.</p>'
    return f"{head}{_summary(report)}\n{sections}{empty}\n{_rules(report)}\n</body>\n</html>\n"


def _summary(report: HealthReport) -> str:
    words = {"error": "errors", "warning": "warnings", "info": "notes"}
    counts = "".join(
        f'<li class="{severity}"><b class="word">{report.count(severity)}</b>{words[severity]}</li>'
        for severity in SEVERITIES
    )
    images = f", {report.num_images:,} images" if report.num_images else ""
    return (
        f'<h1>Health of the dataset</h1>\n<p class="path">{escape(report.url)}</p>\n'
        f'<p class="soft">Looked at: {report.num_episodes:,} episodes, {report.num_steps:,} steps{images}, in '
        f"{report.duration_s:.1f} s. Features: {escape(', '.join(report.features))}.</p>\n"
        f'<ul class="counts">{counts}</ul>'
    )


def _section(group: Group) -> str:
    first = group.findings[0]
    where = f"<code>{escape(group.feature)}</code>" if group.feature else ""
    severity = "note" if group.severity == "info" else group.severity
    pictures = "".join(_figure(finding) for finding in group.findings if finding.plot is not None)
    listed = "".join(f"<li>{_line(finding)}</li>" for finding in group.findings[:SHOWN])
    more = len(group.findings) - SHOWN
    rest = f'<li class="soft">and {more} more, in episodes {_numbers(group.episodes)}</li>' if more > 0 else ""
    return (
        f'<section class="{group.severity}">\n<div class="head"><span class="word">{severity}</span>'
        f"<h2>{escape(group.rule)}</h2>{where}</div>\n"
        f'<p>{escape(first.reason)}</p>\n<p class="soft">What to do: {escape(first.advice)}</p>\n'
        + (f'<div class="pictures">{pictures}</div>\n' if pictures else "")
        + f'<ul class="found">{listed}{rest}</ul>\n</section>'
    )


def _line(finding: Finding) -> str:
    episode = (
        ""
        if finding.episode is None
        else f'<span title="{escape(finding.uid or "")}">episode {finding.episode}</span>: '
    )
    component = f"<code>{escape(finding.component)}</code> " if finding.component else ""
    return f"{episode}{component}{escape(finding.message)}"


def _figure(finding: Finding) -> str:
    plot = finding.plot
    assert plot is not None  # noqa: S101 - for the type checker: the caller looked
    episode = "all episodes" if finding.episode is None else f"episode {finding.episode}"
    return (
        f'<figure><figcaption class="top"><span>{escape(plot.title)}</span><span class="soft">{episode}</span>'
        f'</figcaption>{svg(plot)}<figcaption class="bottom"><span>{escape(plot.first)}</span><span>{escape(plot.last)}'
        "</span></figcaption></figure>"
    )


def svg(plot: Plot) -> str:
    """A plot as an inline SVG of 320 × 72."""
    known = [value for value in plot.values if value is not None]
    low, high = min((*known, *plot.lines), default=0.0), max((*known, *plot.lines), default=1.0)
    if plot.kind == "bars":
        low, high = min(low, 0.0), max(high, 0.0)
    span = high - low or 1.0
    left, right, top, bottom = 44.0, WIDTH - 4.0, 6.0, HEIGHT - 6.0
    step = (right - left) / max(len(plot.values) - (plot.kind == "course"), 1)

    def x(place: float) -> float:
        return min(max(left + place * step, left), right)

    def y(value: float) -> float:
        return bottom - (value - low) / span * (bottom - top) if high > low else HEIGHT / 2

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">']
    if plot.kind == "course":
        parts += [
            f'<rect class="mark" x="{x(a):.1f}" y="0" width="{max(x(b) - x(a), 3):.1f}" height="{HEIGHT}"/>'
            for a, b in plot.marks
        ]
        parts += [f'<path class="line" d="{_path(plot, x, y)}"/>'] if known else []
    else:
        marked = {int(a) for a, _ in plot.marks}
        for place, value in enumerate(plot.values):
            if value is not None:
                shade = "marked" if place in marked else "bar"
                upper, lower = min(y(value), y(0.0)), max(y(value), y(0.0))
                parts.append(
                    f'<rect class="{shade}" x="{x(place) + 0.5:.1f}" y="{upper:.1f}" width="{max(step - 1, 0.5):.1f}" '
                    f'height="{max(lower - upper, 0.5):.1f}"/>'
                )
    parts += [
        f'<line class="level" x1="{left}" x2="{right}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>'
        for level in plot.lines
    ]
    ends = ((high, 12), (low, HEIGHT - 4)) if high > low else ((high, HEIGHT // 2 + 3),)
    parts += [f'<text x="40" y="{at}" text-anchor="end">{value:.3g}</text>' for value, at in ends] if known else []
    return "".join([*parts, "</svg>"])


def _path(plot: Plot, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    drawn, pen_down = [], False
    for place, value in enumerate(plot.values):
        if value is None:
            pen_down = False
            continue
        alone = not pen_down and (place + 1 == len(plot.values) or plot.values[place + 1] is None)
        drawn.append(f"{'L' if pen_down else 'M'}{x(place):.1f} {y(value):.1f}{'h1' if alone else ''}")
        pen_down = True
    return "".join(drawn)


def _numbers(episodes: list[int], most: int = 20) -> str:
    return ", ".join(map(str, episodes[:most])) + (", …" if len(episodes) > most else "")


def _rules(report: HealthReport) -> str:
    rows = []
    for name, thresholds in report.rules.items():
        counts = report.counts.get(name, {})
        found = sum(counts.values())
        shown = ", ".join(f"{escape(key)} {value:g}" for key, value in thresholds.items())
        rows.append(
            f'<tr><td><code>{escape(name)}</code></td><td class="number">{found or "–"}</td><td>{shown}</td></tr>'
        )
    return (
        f'<details open><summary>What was looked for: {len(report.rules)} rules</summary>\n<div class="wide"><table>'
        '<tr><th>rule</th><th class="number">found</th><th>thresholds</th></tr>\n'
        + "\n".join(rows)
        + "</table></div></details>"
    )


def escape(text: str) -> str:
    """Text out of a dataset, as HTML that means nothing else; what has no UTF-8 form is spelled out."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())
