"""What a comparison consists of: cells, each an agent in an environment with a run folder of its own, and checks."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowrl import agents, tasks
from flowrl import config as configs
from flowrl.config import record, static
from flowrl.errors import UserError
from flowrl.experiment import presets
from flowrl.experiment.settings import Plan, Settings, plan
from flowrl.experiment.stored import read_config, read_plan
from flowrl.reports import suites
from flowrl.reports.published import canonical
from flowrl.run_folder import logs
from flowrl.run_folder.layout import CONFIG, SUMMARY
from flowrl.tasks import Task


class Suite(NamedTuple):
    """Tasks whose results are kept as rows.

    Attributes:
        names: Those that are compared where none are given.
        like: A regular expression of all that may be given.
        what: What one of them is.
    """

    names: Sequence[str]
    like: str
    what: str


DOMAINS = (
    "antmaze-large-navigate", "antmaze-giant-navigate", "humanoidmaze-medium-navigate", "humanoidmaze-large-navigate",
    "antsoccer-arena-navigate", "cube-single-play", "cube-double-play", "scene-play", "puzzle-3x3-play",
    "puzzle-4x4-play",
)  # fmt: skip
"""OGBench's ten domains of single tasks, five tasks each, as Flow Q-Learning (arXiv 2502.02538) compares them."""
GOALS = {
    ("navigate", "stitch"): (
        *(f"{body}maze-{size}" for body in ("point", "ant") for size in ("medium", "large", "giant", "teleport")),
        *(f"humanoidmaze-{size}" for size in ("medium", "large", "giant")),
        *(f"antsoccer-{field}" for field in ("arena", "medium")),
    ),
    ("explore",): tuple(f"antmaze-{size}" for size in ("medium", "large", "teleport")),
    ("play", "noisy"): (
        *(f"cube-{count}" for count in ("single", "double", "triple", "quadruple")), "scene",
        *(f"puzzle-{size}" for size in ("3x3", "4x4", "4x5", "4x6")),
    ),
}  # fmt: skip
"""The sets of OGBench's table of goals (arXiv 2410.20092) whose observations are states, by kind."""
SUITES = {
    "ogbench-singletask": Suite(
        [f"{name}-singletask-task{task}" for name in DOMAINS for task in range(1, 6)],
        r".+-singletask-task\d",
        "single task of OGBench",
    ),
    "ogbench-goals": Suite(
        [f"{name}-{kind}" for kinds, names in GOALS.items() for name in names for kind in kinds],
        rf"[^:]+-({'|'.join(kind for kinds in GOALS for kind in kinds)})",
        "set of goals of OGBench",
    ),
}
_OURS = ("agent", "env", "resume")
"""Settings of a run that the program sets."""
_OF_A_SUITE = ("env", "agent", "preset", "seed", "num_seeds")


@record
class CompareSettings:
    """Settings of a comparison beside those of its runs."""

    agents: str = static("", "Algorithms to compare, separated by commas.")
    envs: str = static("", "Environments to compare them in, separated by commas; of a suite all where none is given.")
    suite: str = static(
        "", f"A suite, {' or '.join(SUITES)}, to whose rows the results are added.", choices=("", *SUITES)
    )  # fmt: skip
    results: str = static("experiments/results", "Where the folder with the rows of a suite lies.")
    list: bool = static(False, "Only show what would be run, and how long it takes, from a short measurement.")


class Cell(NamedTuple):
    """An agent in an environment.

    Attributes:
        plan: Its run, with all seeds.
    """

    plan: Plan

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.plan.folder

    @property
    def name(self) -> str:
        """The agent and the environment."""
        return f"{self.plan.settings.agent} on {self.plan.env.name}"

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return (self.folder / SUMMARY).exists()

    @property
    def reached(self) -> int:
        """The last step in its logs."""
        lines = logs.read_lines(self.folder / "time.jsonl")
        return int(lines[-1]["step"]) if lines else 0


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
        given: Settings of all runs that were given, by dotted name.
        of_agents: For each agent the settings of it that were given.
        options: The settings of the comparison itself.
        command: What was typed, without places of the machine.
    """

    given: Mapping[str, Any]
    of_agents: Mapping[str, Mapping[str, Any]]
    options: CompareSettings
    command: str

    @property
    def folder(self) -> Path:
        """Where its run folders lie: by default one place for each preset, so that the same command goes on there."""
        usual = f"runs/compare-{self.given.get('preset', Settings().preset)}"
        return Path(self.given.get("run_dir") or usual).expanduser()

    @property
    def free(self) -> dict[str, Any]:
        """What was given that may be otherwise when a run goes on."""
        free = {entry.name for entry in configs.flatten(Settings()) if entry.field.metadata["resumable"]}
        return {name: value for name, value in self.given.items() if name in free and name not in ("steps", *_OURS)}

    @property
    def results(self) -> Path:
        """The folder of the suite's rows."""
        return Path(self.options.results).expanduser() / self.options.suite.replace("-", "_")


# ------------------------------------------------------------------------------------------------------- checks


def listed(flag: str, text: str) -> list[str]:
    """Returns the parts of a list on the command line.

    Raises:
        UserError: It is empty, or has a part twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise UserError(f"--{flag} is missing, or lacks a name; write names separated by commas")
    if twice := [part for index, part in enumerate(parts) if part in parts[:index]]:
        raise UserError(f"--{flag} has {twice[0]} twice; leave one out")
    return parts


def told(arguments: Sequence[str]) -> str:
    """Returns a command line without places of the machine; data from a file is named `--data=FILE`."""
    shown = [argument for argument in arguments if not re.match(r"--?(run_dir|results|workers)\b", argument)]
    shown = [re.sub(r"^(--?data)=.*[/.~].*", r"\1=FILE", argument) for argument in shown]
    return " ".join(["python experiments/compare.py", *shown])


def cells(comparison: Comparison) -> list[Cell]:
    """Returns the runs of a comparison, environment by environment, once all that can be said before has been checked.

    Raises:
        UserError: An agent or environment is unknown or there twice, they do not go together, a value cannot be, or a
            folder holds a run of another size.
    """
    options, given = comparison.options, comparison.given
    if wrong := [name for name in _OURS if name in given]:
        raise UserError(f"--{wrong[0]} is set for each run by this program; give --agents and --envs, or leave it out")
    configs.check(options)
    names = listed("agents", options.agents)
    for name in names:
        agents.load(name)
    envs = _environments(comparison)
    pairs = [(name, env) for env in envs for name in names]
    found = [_cell(comparison, name, env) for name, env in _with_settings(comparison, pairs)]
    for cell in found:
        _require_same_size(cell, next(other for other in found if other.plan.env.name == cell.plan.env.name))
        if (cell.folder / CONFIG).exists():
            _require_same(cell, given)
    return found


def _with_settings(comparison: Comparison, pairs: Sequence[tuple[str, Task]]) -> list[tuple[str, Task]]:
    """Leaves out of a suite at published size the agents of which no settings are published there, and says so.

    Raises:
        UserError: None is left.
    """
    if not comparison.options.suite or comparison.given.get("preset", Settings().preset) != "paper":
        return list(pairs)
    lacking = [(name, env) for name, env in pairs if not {"", env.published} & presets.datasets(name)]
    for name in dict.fromkeys(name for name, _ in lacking):
        own = [env.name for other, env in lacking if other == name]
        print(f"no published settings of {name}, which is left out there: {', '.join(own)}")
    if len(lacking) == len(pairs):
        raise UserError("none of these agents has published settings for any of these tasks; choose --preset=quick")
    return [pair for pair in pairs if pair not in lacking]


def _environments(comparison: Comparison) -> list[Task]:
    suite = comparison.options.suite
    if suite and (wrong := _beyond_a_preset(comparison)):
        raise UserError(f"--suite={suite} takes a preset, quick or paper, as it stands; leave --{wrong} out")
    tasks_of = SUITES.get(suite)
    names = comparison.options.envs or ",".join(tasks_of.names if tasks_of else ())
    found = [tasks.parse(name) for name in listed("envs", names)]
    listed("envs", ",".join(canonical(env.name) for env in found))
    if tasks_of and (other := [env.name for env in found if not re.fullmatch(tasks_of.like, canonical(env.name))]):
        raise UserError(f"{other[0]} is no {tasks_of.what}; leave it out, or give no --suite")
    goals = {env.goals != "none": env for env in reversed(found)}
    if len(goals) > 1:
        raise UserError(
            f"{goals[True].name} has goals and {goals[False].name} a single task: no agent learns both; compare them "
            "apart"
        )
    return found


def _beyond_a_preset(comparison: Comparison) -> str:
    """Returns a flag by which runs would not be those of a published preset, or nothing."""
    if comparison.given.get("preset") == "none":
        return "preset=none"
    learning = {entry.name for entry in configs.flatten(Settings()) if entry.field.metadata["learning"]}
    own = [name for name in comparison.given if name in learning and name not in _OF_A_SUITE]
    of_agents = [f"{agent}.{name}" for agent, values in comparison.of_agents.items() for name in values]
    return next(iter([*own, *of_agents]), "")


def _cell(comparison: Comparison, name: str, env: Task) -> Cell:
    folder = comparison.folder / f"{name}-{re.sub('[:/]', '-', env.name)}"
    given = {**comparison.given, "agent": name, "env": env.name, "run_dir": str(folder)}
    return Cell(plan(given, comparison.of_agents.get(name, {})))


def _require_same_size(cell: Cell, other: Cell) -> None:
    """Checks that two agents train as long in an environment."""
    own, theirs = cell.plan.settings, other.plan.settings
    for name in ("steps", "online.steps"):
        one, two = configs.values(own)[name], configs.values(theirs)[name]
        if one != two:
            raise UserError(
                f"{cell.name} would train with --{name}={one}, {other.plan.settings.agent} with {two}: a comparison "
                f"does not mix sizes; give --{name} for all"
            )


def _require_same(cell: Cell, given: Mapping[str, Any]) -> None:
    """Checks that the run in a folder is the one that is asked for."""
    before, stored = read_plan(cell.folder)
    planned = cell.plan
    if (seeds := [one.seed for one in planned.runs]) != stored["seeds"]:
        raise UserError(f"{cell.folder} has the seeds {stored['seeds']}, not {seeds}; choose another --run_dir")
    for own, now, prefix in ((before.settings, planned.settings, ""), (before.config, planned.config, "agent.")):
        held = configs.values(own)
        for entry in configs.flatten(now):
            if entry.field.metadata["learning"] and held[entry.name] != entry.value:
                raise UserError(
                    f"{cell.folder} was trained with --{prefix}{entry.name}={held[entry.name]}, not {entry.value}: a "
                    "comparison does not mix sizes; choose another --run_dir"
                )
    if given.get("data") in ("official", "collected") and given["data"] != stored["data"]["origin"]:
        raise UserError(
            f"{cell.folder} was trained on data of origin {stored['data']['origin']}, not {given['data']}; choose "
            "another --run_dir"
        )


def require_rows(comparison: Comparison, found: Sequence[Cell]) -> None:
    """Checks before the training that the suite's table may have the rows of these."""
    claims = []
    for cell in found:
        settings, begun = cell.plan.settings, (cell.folder / CONFIG).exists()
        fingerprint = suites.fingerprint(read_config(cell.folder)) if begun else None
        task = canonical(cell.plan.env.name)
        claims.append(suites.Claim(task, settings.agent, settings.preset, settings.total, fingerprint))
    suites.require(comparison.results / suites.ROWS, claims)
