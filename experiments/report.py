"""Reports on runs, or a sweep: python experiments/report.py RUN_DIR... [--out=report.html].

Writes one HTML file that needs neither network nor scripts: warnings about what may not be compared, final scores with
intervals, the best configuration by a stated rule where several seeds tell it, the pictures of experiments/plot.py with
their numbers, and what was run.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import base64
import html
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flowrl.cli import flags
from flowrl.config import record, static
from flowrl.errors import UserError
from flowrl.experiment import videos
from flowrl.machine.provenance import git_commit
from flowrl.reports import comparisons, drawing, figures
from flowrl.reports.comparisons import number_text
from flowrl.reports.curves import Group, group_runs, name, panels, traces
from flowrl.run_folder import logs
from flowrl.run_folder.evaluations import RunDir, read_all
from flowrl.run_folder.summary import HEADLINE_EVALUATIONS, shown

SEEDS = 3
"""Fewer seeds than these are warned of."""
RULE = (
    f"A seed's final score is its mean over tasks and over its last {HEADLINE_EVALUATIONS} evaluations. The best "
    "configuration has the highest mean of final scores over seeds; a run's best single evaluation decides nothing. "
    "Brackets hold 95 % percentile bootstrap intervals over seeds: they say what other seeds might have given. Of few "
    "seeds they are too narrow: of normal scores they hold the true mean in 75 % of cases with three seeds, 83 % with "
    "five and 90 % with ten."
)
TITLES = {
    "curves": "Learning curves",
    "final": "Final scores",
    "profile": "Performance profiles",
    "improvement": "Probability of improvement",
    "sensitivity": "Sensitivity to settings",
}
MOST_VIDEO_BYTES = 12_000_000
"""Videos are left out of a page that would hold more of them."""
STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.8em 0; width: 100% }
th, td { border-bottom: 1px solid #ccc; padding: 0.35em 0.6em; text-align: left; vertical-align: top }
td { overflow-wrap: break-word }
tr.best { background: #e8f3ea; font-weight: bold }
figure { display: inline-block; margin: 0.5em 0.5em 0.5em 0; width: 256px; vertical-align: top }
video { width: 100%; display: block }
img { max-width: 100%; display: block; margin: 0.5em 0 }
code { font-size: 0.85em; overflow-wrap: anywhere }
.warnings { background: #fff4e0; border-left: 5px solid #e69f00; padding: 0.2em 1em }
.whole { white-space: nowrap }
.note { color: #555; font-size: 0.9em }
"""


@record
class Settings:
    """The flags of this program."""

    out: str = static("report.html", "The report: .html.")
    mode: str = static("eval", "Evaluations: eval, of single actions, or best_of_n, of choices by Q.")


# ---------------------------------------------------------------------------------------------------- markup


class Html(str):
    """Text that is markup already; any other text is escaped by `tag`."""


def tag(element: str, *children: str, **attributes: str) -> Html:
    """Returns an element; `class_` stands for the attribute `class`."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    inside = "".join(child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html(f"<{element}{given}>{inside}</{element}>")


def whole(text: str) -> Html:
    """Returns text that is not broken into lines."""
    return tag("span", text, class_="whole")


def rows(head: Sequence[str], body: Iterable[tuple[str, Sequence[str]]]) -> Html:
    """Returns a table; each row comes with its class."""
    lines = [tag("tr", *(tag("td", cell) for cell in cells), class_=kind) for kind, cells in body]
    return tag("table", tag("thead", tag("tr", *(tag("th", cell) for cell in head))), tag("tbody", *lines))


# --------------------------------------------------------------------------------------------------- warnings


def warnings(groups: Sequence[Group], left_out: Sequence[str]) -> list[str]:
    """Returns what keeps the numbers from being compared or relied on."""
    found = [f"left out: {reason}" for reason in left_out]
    for environment, row in panels(groups).items():
        for group in row:
            found += [f"{environment}: {name(group, row)}: {text}" for text in _of_group(group)]
        found += [f"{environment}: {text}" for text in _between(row)]
    runs = [run for group in groups for run in group.runs]
    changed = [run.folder for run in runs if str(run.config.get("git_commit")).endswith("-dirty")]
    dirty = [folder.resolve().name for folder in dict.fromkeys(changed)]
    return found + [f"trained with local changes that no commit holds: {', '.join(dirty)}"] * bool(dirty)


def _of_group(group: Group) -> list[str]:
    count, last = len(group.curves), len(group.headline_steps)
    found = [
        f"{run.folder.resolve().name} diverged: {'; '.join(run.diverged.values())}"
        for run in group.runs
        if run.diverged
    ]
    if group.unfinished:
        found.append(group.unfinished)
    if count < SEEDS:
        found.append(f"{count} seed{'s' * (count > 1)}; intervals from fewer than {SEEDS} seeds say little")
    if last < HEADLINE_EVALUATIONS:
        found.append(f"the final score averages {last} evaluation{'s' * (last > 1)} instead of {HEADLINE_EVALUATIONS}")
    return found


def _between(row: Sequence[Group]) -> list[str]:
    """Returns how the configurations of an environment differ in more than their settings."""
    differences = {
        "seeds differ": [", ".join(map(str, sorted(group.curves))) for group in row],
        "final scores come from different evaluations": [f"{group.unit} {group.headline_steps}" for group in row],
        "episodes per evaluation differ": [str(max(run.episodes for run in group.runs)) for group in row],
    }
    data = (
        ["trained on different data, as their names say"] if len({group.identity["data"] for group in row}) > 1 else []
    )
    return data + [
        f"{what}: " + "; ".join(f"{name(group, row)}: {value}" for group, value in zip(row, values, strict=True))
        for what, values in differences.items()
        if len(set(values)) > 1
    ]


# --------------------------------------------------------------------------------------------------- sections


def environment_section(panel: dict[str, Any], pairs: Sequence[dict[str, Any]]) -> Html:
    """Returns the table of an environment and its best configuration."""
    best, metric = comparisons.best(panel["configurations"]), panel["metric"]
    body = [
        (
            "best" if row is best and len(panel["configurations"]) > 1 else "",
            (
                row["label"],
                whole(number_text(metric, row, "mean")),
                whole(number_text(metric, row, "iqm")),
                Html(", ".join(whole(f"{seed}: {shown(metric, value)}") for seed, value in row["per_seed"].items())),
                row["rule"],
            ),
        )
        for row in panel["configurations"]
    ]
    head = ("Configuration", "Mean", "Interquartile mean", "Seeds", "Final score")
    return tag(
        "section",
        tag("h3", f"{panel['panel']}: {drawing.LABELS[metric]}"),
        rows(head, body),
        tag("p", _verdict(best, pairs) if pairs else "Only one configuration: nothing to compare."),
    )


def _verdict(best: dict[str, Any] | None, pairs: Sequence[dict[str, Any]]) -> str:
    """Says which configuration is best, and how surely it beats the second."""
    if best is None:
        return f"No best: {comparisons.ONE_SEED}."
    pair = pairs[0]
    interval, (ours, theirs) = pair["probability_interval_95"], pair["seeds"]
    text = f"Best: {best['name']}. Probability that a run of it beats one of {pair['than']}: {pair['probability']:.2f}"
    text += f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    if pair["probability"] == 1:  # all resamples agree, however few the runs
        chance = math.comb(ours + theirs, ours)
        return f"{text}; of {ours} runs against {theirs} that happens once in {chance} times by chance alone."
    return f"{text}; the runs do not tell the two apart." if interval[0] <= 0.5 else f"{text}."


def pooled_section(panel: dict[str, Any]) -> Html:
    """Returns the table over all environments."""
    prefixes = ("mean", "median", "iqm", "optimality_gap")
    body = [
        ("", (row["name"], *(whole(number_text(panel["metric"], row, prefix)) for prefix in prefixes)))
        for row in panel["configurations"]
    ]
    head = ("Configuration", "Mean", "Median of environments", "Interquartile mean", "Optimality gap (lower is better)")
    seeds, environments = panel["configurations"][0]["shape"]
    return tag(
        "section",
        tag("h3", f"{panel['panel'].capitalize()}: {drawing.LABELS[panel['metric']]}"),
        rows(head, body),
        tag("p", f"{seeds} seeds on each of {environments} environments, resampled within each.", class_="note"),
    )


def picture_section(kind: str, groups: Sequence[Group]) -> Html:
    """Returns a picture with its numbers, or why there is none."""
    title = tag("h3", TITLES[kind])
    try:
        picture = figures.make(kind, groups)
    except comparisons.NothingToCompare as error:
        return tag("section", title, tag("p", f"Not drawn: {error}.", class_="note"))
    image = base64.b64encode(figures.png(picture)).decode()
    numbers = base64.b64encode(json.dumps(picture.numbers, allow_nan=False).encode()).decode()
    link = tag("a", "plotted numbers", href=f"data:application/json;base64,{numbers}", download=f"{kind}.json")
    return tag(
        "section", title, Html(f'<img alt="{html.escape(TITLES[kind])}" src="data:image/png;base64,{image}">'), link
    )


def video_section(runs: Sequence[RunDir]) -> list[Html]:
    """Returns for each run directory with videos the first of every task, until the page holds enough of them."""
    found, room = [], MOST_VIDEO_BYTES
    for folder in dict.fromkeys(run.folder for run in runs):
        shown_here = videos.index(folder)
        figures_here = []
        for film in shown_here.get("videos", ()):
            path = folder / videos.FOLDER / film["file"]
            if film["episode"] == 0 and path.exists():
                room -= path.stat().st_size
                figures_here.append(_figure(path, film, fits=room >= 0))
        if figures_here:
            found.append(tag("section", tag("h3", _video_title(folder, shown_here)), *figures_here))
    return [tag("h2", "Videos"), *found] if found else []


def _video_title(folder: Path, shown_here: dict[str, Any]) -> str:
    own = [f"{name} {value}" for name, value in shown_here.items() if name == "seed" or name.startswith("agent.")]
    return f"{folder.resolve().name}: {', '.join(own)}, after {shown_here['unit']} {shown_here['step']:,}"


def _figure(path: Path, film: dict[str, Any], *, fits: bool) -> Html:
    """Returns a video with what happens in it, or says that the page has no room for it."""
    outcome = f"return {film['return']:.1f}" if "return" in film else "broken off by a number that is not finite"
    if "success" in film:
        outcome = "success" if film["success"] else "no success"
    caption = f"Task {film['task']}: {outcome}, {film['length']:,} steps"
    if not fits:
        caption += (
            f"; left out, for this page holds no more than {MOST_VIDEO_BYTES / 1e6:g} MB of videos: "
            f"{videos.FOLDER}/{film['file']} of the run"
        )
        return tag("figure", tag("figcaption", caption, class_="note"))
    data = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    player = tag("video", src=data, controls="", muted="", preload="metadata")
    return tag("figure", player, tag("figcaption", caption, class_="note"))


def runs_section(runs: Sequence[RunDir]) -> Html:
    """Returns what was run."""
    body = []
    for run in runs:
        trace = traces(run)
        data = trace["data"]["from"] + (f", SHA-256 {trace['data']['sha256'][:12]}…" * bool(trace["data"]["sha256"]))
        versions = ", ".join(f"{package} {version}" for package, version in (trace["versions"] or {}).items())
        preset = trace["preset"] or {}
        cells = (
            whole(trace["run_dir"]),
            tag("code", trace["command"]),
            ", ".join(map(str, trace["seeds"])),
            data,
            str(preset.get("source") or preset.get("name")),
            tag("code", str(trace["git_commit"] or "unknown")),
            f"{trace['hardware']}; {versions}",
        )
        body.append(("", cells))
    return rows(("Run", "Command", "Seeds", "Data", "Preset", "Commit", "Hardware and versions"), body)


def page(groups: Sequence[Group], found: Sequence[str]) -> str:
    """Returns the whole report with the warnings found, in ASCII so that no reader's settings matter."""
    runs = [run for group in groups for run in group.runs]
    finals = comparisons.final(groups)
    pairs = {panel["panel"]: panel["pairs"] for panel in comparisons.pairs(groups)}
    agents = ", ".join(dict.fromkeys(group.identity["agent"] for group in groups))
    title = f"Report: {agents} on {', '.join(panels(groups))}"
    body = (
        tag("h1", title),
        tag(
            "p",
            f"{len(groups)} configurations, {sum(len(group.curves) for group in groups)} trainings, "
            f"{len({run.folder for run in runs})} run directories. Made by experiments/report.py of flowrl, commit "
            f"{git_commit() or 'unknown'}.",
            class_="note",
        ),
        tag("h2", "Warnings"),
        tag("div", tag("ul", *(tag("li", text) for text in found)), class_="warnings") if found else tag("p", "None."),
        tag("h2", "Final scores"),
        tag("p", RULE),
        *(environment_section(panel, pairs.get(panel["panel"], ())) for panel in finals),
        *(pooled_section(panel) for panel in comparisons.pooled(groups)),
        tag("h2", "Pictures"),
        *(picture_section(kind, groups) for kind in TITLES),
        *video_section(runs),
        tag("h2", "What was run"),
        runs_section(runs),
    )
    head = tag("head", Html('<meta charset="utf-8">'), tag("title", title), tag("style", Html(STYLE)))
    document = f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n"
    return document.encode("ascii", "xmlcharrefreplace").decode()


# ---------------------------------------------------------------------------------------------------- program


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    given = flags.read_with_rest(Settings(), arguments, __doc__ or "", positional=True)
    if given is None:
        return 0
    options, folders = given
    if not folders:
        raise UserError("which runs? give one or more run directories: python experiments/report.py runs/A runs/B")
    out = Path(options.out).expanduser()
    if out.suffix != ".html":
        raise UserError(f"--out={options.out} is no report; end it in .html")
    paths = [Path(folder).expanduser() for folder in folders]
    runs, left_out = read_all(paths, mode=options.mode)
    groups = group_runs(runs)
    for folder in paths:  # the page names no folders of the machine
        left_out = [reason.replace(str(folder), folder.resolve().name) for reason in left_out]
    found = warnings(groups, left_out)
    logs.write_text(out, page(groups, found))
    for text in found:
        print(f"warning: {text}", file=sys.stderr)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    flags.run(main)
