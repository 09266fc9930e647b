"""Runs a study of the papers at quick size: python experiments/studies.py ofql_flow_ratio [--num_seeds=3].

Trains one agent in several variants through experiments/main.py, which receives every other flag, written
--name=value; --env=cube-single-play-singletask and --preset=quick are the defaults. Runs go to
<out>/<study>/<variant>/, the table (table.json, table.md) and its picture to <out>/<study>/. The same command continues
a study that was broken off; finished variants are not trained again.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags as absl_flags

from flowrl import config as configs
from flowrl import curves, flags, loggers, run_files, schema, stats
from flowrl.errors import UserError, suggestion
from flowrl.figures import COLOURS, METRICS
from flowrl.files import make_folder, replacing
from flowrl.provenance import git_commit, hardware
from flowrl.settings import command, read_config
from flowrl.signals import run_program
from flowrl.summary import scale

MAIN = Path(__file__).with_name("main.py")
DEFAULTS = {"env": "cube-single-play-singletask", "preset": "quick", "num_seeds": "3"}
OURS = ("agent", "run_dir", "resume", "help")
"""Flags of experiments/main.py that a study sets itself."""
KEPT = ("config.json", "eval.jsonl", "summary.json")
"""What stays of a finished run."""


class Study(NamedTuple):
    """One setting of one agent, in several values.

    Attributes:
        agent: The agent.
        field: The field of its `Config` that varies.
        values: Its values, as on the command line.
        question: What the study asks, with its source.
    """

    agent: str
    field: str
    values: tuple[str, ...]
    question: str


_OFQL, _SSCP = "https://arxiv.org/abs/2508.13904", "https://arxiv.org/abs/2506.21427"
STUDIES = {
    "ofql_flow_ratio": Study(
        "ofql", "flow_ratio", ("0", "0.25", "0.5", "0.75", "1"),
        f"OFQL: share of rows with r = t; 1 is plain flow matching ({_OFQL})",
    ),
    "ofql_time_sampler": Study(
        "ofql", "time_sampler", ("logit_normal", "uniform"), f"OFQL: distribution of r and t ({_OFQL})"
    ),
    "sscp_completion": Study(
        "sscp", "completion_target", ("data", "bootstrap"),
        f"SSCP: completions regressed on the data or on two half steps of the slow actor ({_SSCP})",
    ),
    "sscp_alpha2": Study(
        "sscp", "completion_alpha", ("0", "0.05", "0.1", "0.5", "1"),
        f"SSCP: weight α2 of the completion loss ({_SSCP})",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program itself."""

    out: str = configs.setting("experiments/results/studies", "Folder of all studies.")


# ---------------------------------------------------------------------------------------------------- training


def passed_on(given: Sequence[str]) -> list[str]:
    """Returns the flags for experiments/main.py: the defaults, then what was given.

    Raises:
        UserError: A flag is not of the form --name=value, or is the study's own business.
    """
    for flag in given:
        if not re.fullmatch(r"--?[\w.]+=.*", flag):
            raise UserError(f"{flag!r} cannot be passed on; write --name=value")
        if _name(flag) in OURS:
            raise UserError(f"--{_name(flag)} is set by the study; leave it out")
    names = {_name(flag) for flag in given}
    return [f"--{name}={value}" for name, value in DEFAULTS.items() if name not in names] + [*given]


def _name(flag: str) -> str:
    return flag.lstrip("-").split("=")[0]


def public(arguments: Sequence[str]) -> list[str]:
    """Returns arguments without paths of this machine."""
    kept = [argument for argument in arguments if not argument.startswith(("--out=", "--workers="))]
    return ["--data=FILE" if re.match(r"--data=.*[/.~]", argument) else argument for argument in kept]


def train(study: Study, value: str, folder: Path, shared: Sequence[str]) -> None:
    """Trains one variant to its end, from its newest checkpoint where there is one.

    Raises:
        UserError: The run failed or was stopped.
    """
    if (folder / "summary.json").exists():
        print(f"{folder.name}: finished before")
        return tidy(folder)
    arguments = [f"--agent={study.agent}", f"--agent.{study.field}={value}", *shared, f"--run_dir={folder}"]
    if (folder / "config.json").exists():
        arguments.append("--resume")
    print(f"{folder.name}: training", flush=True)
    status = run_program([sys.executable, str(MAIN), *arguments])
    if status or not (folder / "summary.json").exists():
        raise UserError(f"variant {folder.name} ended with status {status}; mend it, and the same command continues")
    return tidy(folder)


def tidy(folder: Path) -> None:
    """Leaves of a finished run what its numbers need, without paths of this machine."""
    config = read_config(folder)
    data = config["data"]
    data["detail"] = re.sub(r",? ?\S*/\S+", "", data["detail"])
    data["path"] = Path(data["path"]).name
    config["settings"]["data"] = "FILE" if data["origin"] == "file" else data["origin"]
    loggers.write_json(folder / "config.json", config)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()


# ------------------------------------------------------------------------------------------------------- table


def read_variant(folder: Path) -> tuple[dict[str, Any], curves.Group]:
    """Returns a finished variant's row of the table, and its curves."""
    (group,) = curves.group_runs(curves.read_runs(folder, with_minutes=False))
    summary, config = schema.read(folder / "summary.json", run_files.SUMMARY), read_config(folder)
    metric = summary["metric"]
    row = {
        "variant": folder.name,
        "command": command(config),
        **{name: config[name] for name in ("git_commit", "hardware", "versions", "seeds")},
        "data": {"from": curves.data_name(config), "sha256": config["data"]["sha256"]},
        **_numbers(summary, metric, config["seeds"]),
    }
    if "best_of_n" in summary:
        best = summary["best_of_n"]
        row["best_of_n"] = {"candidates": best["candidates"], **_numbers(best, metric, config["seeds"])}
    return row, group


def _numbers(part: dict[str, Any], metric: str, seeds: Sequence[int]) -> dict[str, Any]:
    values = part[f"{metric}_per_seed"]
    interval = stats.mean_interval(np.array(values))
    bounds = None if math.isnan(interval.low) else [interval.low, interval.high]
    per_seed = dict(zip(map(str, seeds), values, strict=True))
    return {"rule": part["rule"], "per_seed": per_seed, "mean": interval.mean, "interval_95": bounds}


def draw(table: dict[str, Any], groups: Sequence[curves.Group], out: Path) -> None:
    """Draws the variants' learning curves, and their final numbers beside them."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib; install it with: pip install -e '.[plot]'") from error
    metric = table["metric"]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for index, (row, group) in enumerate(zip(table["variants"], groups, strict=True)):
        style = {"color": COLOURS[index % len(COLOURS)], "marker": "os^DvP"[index % 6]}
        mean, low, high = scale(metric) * np.array(group.intervals).T
        left.plot(group.steps, mean, label=row["variant"], **style)
        seeds = scale(metric) * np.array([*row["per_seed"].values()])
        if len(seeds) > 1:
            left.fill_between(group.steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
            low, high = scale(metric) * np.array(row["interval_95"])
            right.plot([index, index], [low, high], color=style["color"], linewidth=2)
        right.plot(np.full(len(seeds), index + 0.2), seeds, ".", color=style["color"], alpha=0.6)
        right.plot([index], [scale(metric) * row["mean"]], markersize=8, **style)
    left.set(xlabel="Updates", ylabel=METRICS[metric], title=f"{table['environment']}: learning curves")
    values = [row["variant"].split("=")[1] for row in table["variants"]]
    right.set(xlim=(-0.5, len(values) - 0.5), xticks=range(len(values)), xticklabels=values, title="Final")
    right.set_xlabel(STUDIES[table["study"]].field)
    if metric == "success":
        left.set_ylim(-2, 102)
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(table["question"], fontsize=11)
    figure.supxlabel(textwrap.fill(_caption(table), 170), fontsize=8, x=0.01, ha="left")
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _caption(table: dict[str, Any]) -> str:
    rows = table["variants"]
    commits = ", ".join(dict.fromkeys(re.sub("(?<=^.{9})[0-9a-f]*", "", str(row["git_commit"])) for row in rows))
    return (
        f"Mean over seeds {', '.join(map(str, rows[0]['seeds']))}; band and bar: 95 % bootstrap interval of that mean; "
        f"dots: single seeds. Final: {rows[0]['rule']}. Data: {rows[0]['data']['from']}. "
        f"Trained on {rows[0]['hardware']}; commit {commits}."
    )


def markdown(table: dict[str, Any]) -> str:
    """Returns the table for people: each variant's number with its interval, and its seeds' numbers."""
    metric, field = table["metric"], STUDIES[table["study"]].field
    unit = " in %" if metric == "success" else ""
    lines = [f"| `{field}` | {metric}{unit} | 95 % interval | seeds |", "|---|---|---|---|"]

    def shown(value: float) -> str:
        return f"{scale(metric) * value:.1f}"

    for row in table["variants"]:
        bounds = " to ".join(map(shown, row["interval_95"])) if row["interval_95"] else "one seed"
        seeds = ", ".join(map(shown, row["per_seed"].values()))
        lines.append(f"| {row['variant'].split('=')[1]} | {shown(row['mean'])} | {bounds} | {seeds} |")
    return "\n".join(lines) + "\n"


def write(folder: Path, table: dict[str, Any], done: Sequence[Path]) -> None:
    """Writes tables and picture of the variants that are finished."""
    found = [read_variant(variant) for variant in done]
    summary = schema.read(done[0] / "summary.json", run_files.SUMMARY)
    table |= {"environment": table["environment"], "metric": summary["metric"], "variants": [row for row, _ in found]}
    loggers.write_json(folder / "table.json", table)
    loggers.write_text(folder / "table.md", markdown(table))
    draw(table, [group for _, group in found], folder / "table.png")


def execute(name: str, out: Path, given: Sequence[str]) -> int:
    """Runs a study and returns its exit status.

    Raises:
        UserError: A run failed, or the folder holds the study with other settings.
    """
    study, folder, shared = STUDIES[name], out / name, passed_on(given)
    make_folder(folder)
    env = next(flag.split("=", 1)[1] for flag in reversed(shared) if _name(flag) == "env")
    table: dict[str, Any] = {
        "study": name,
        "question": study.question,
        "environment": env,
        "command": " ".join(["python experiments/studies.py", name, *public(given)]),
        "flags_of_main": public(shared),
        "git_commit": git_commit(),
        "hardware": hardware(),
    }
    path, begun = folder / "table.json", any(folder.glob("*/config.json"))
    if path.exists() and begun and (before := loggers.read_json(path)["flags_of_main"]) != table["flags_of_main"]:
        raise UserError(f"{folder} holds this study with {' '.join(before)}; give these, or choose another --out")
    if not begun:
        loggers.write_json(path, table | {"variants": []})
    done: list[Path] = []
    for value in study.values:
        variant = folder / f"{study.field}={value}"
        train(study, value, variant, shared)
        done.append(variant)
        write(folder, table, done)
    for row in table["variants"]:
        interval = stats.Interval(row["mean"], *(row["interval_95"] or (math.nan, math.nan)))
        print(f"{row['variant']}: {table['metric']} {curves.final_text(table['metric'], interval)}")
    print(f"wrote {folder}/table.json, table.md and table.png")
    return 0


def _help() -> str:
    studies = [f"  {name}\n        {study.question}: {', '.join(study.values)}" for name, study in STUDIES.items()]
    return "\n".join([f"{__doc__}\n{flags.help_text(Options)}\n\nstudies:", *studies])


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    if flags.informed(arguments, _help):
        return 0
    values = absl_flags.FlagValues()
    flags.define(values, Options)
    rest = flags.parse(values, arguments, known_only=True)
    names = [argument for argument in rest if not argument.startswith("-")]
    if len(names) != 1:
        raise UserError(f"which study? give one of {', '.join(STUDIES)}; flags are written --name=value")
    if names[0] not in STUDIES:
        raise UserError(f"unknown study {names[0]!r}{suggestion(names[0], STUDIES)}")
    return execute(names[0], Path(values.out).expanduser(), [argument for argument in rest if argument.startswith("-")])


if __name__ == "__main__":
    flags.run(main)
