"""Sets of settings to start from, each row with its source: `paper`, the published ones, `quick`, for two CPU cores.

A folder for each preset, a file for each agent in it, and `any.csv` for agents without a file, of which each takes what
it has settings for. A row holds for a dataset, or for all where none is named, and for one way of learning (`offline`,
`offline_to_online`, `online`), or all. Its other columns are flags, and what stands there is written as on the command
line.
"""

import csv
import functools
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from flowrl import agents, config
from flowrl.errors import UserError

NAMES = ("paper", "quick", "none")
_ANY = "any"
_KEYS = ("dataset", "setting", "source")
Row = dict[str, str]


class Preset(NamedTuple):
    """A set of settings and where they come from.

    Attributes:
        source: Citation, for the banner.
        run: Texts of settings of the run by dotted name, as on the command line.
        agent: Those of the agent's configuration.
    """

    source: str
    run: dict[str, str]
    agent: dict[str, str]


def datasets(agent: str) -> frozenset[str]:
    """Returns the names of the datasets for which an agent has published settings."""
    return frozenset(row["dataset"] for row in table("paper", agent) if row["setting"] == "offline")


def lookup(name: str, agent: str, dataset: str, *, online: bool = False) -> Preset:
    """Returns the preset `paper`, `quick` or `none` of an agent for a dataset named without its version.

    The quick preset stands on the published one: what it does not set itself (subgoal steps, discount, temperatures) is
    the dataset's published value.

    Args:
        name: Which preset.
        agent: The agent.
        dataset: The name under which settings for it are published, `Task.published`.
        online: Whether the run goes on online after the data: where such runs have published settings, these hold from
            its beginning.

    Raises:
        UserError: There is no such preset; the message names those there are.
    """
    if name not in NAMES:
        raise UserError(f"unknown preset {name!r}; choose {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if name == "none":
        return Preset("none: the agent's defaults", {}, {})
    settings = ("offline_to_online",) * online + ("offline", "online")
    rows = _rows("paper", agent, dataset, settings)
    if name == "quick":
        rows += _rows("quick", agent, dataset, settings)
    elif not rows:
        raise UserError(
            f"{agent} has no published settings for {dataset}; choose --preset=quick or --preset=none and give "
            "your own as --agent.<field>=value"
        )
    flags = {flag: text for row in rows for flag, text in row.items() if text and flag not in _KEYS}
    of_agent = {flag.removeprefix("agent."): text for flag, text in flags.items() if flag.startswith("agent.")}
    run = {flag: text for flag, text in flags.items() if not flag.startswith("agent.")}
    return Preset(rows[-1]["source"], run, of_agent)


def _rows(name: str, agent: str, dataset: str, settings: Sequence[str]) -> list[Row]:
    """Returns the rows that hold, the later over the earlier, for the first of some ways of learning that has any."""
    rows = [row for row in table(name, agent) or _of_any(name, agent) if row["dataset"] in ("", dataset)]
    setting = next((setting for setting in settings if any(row["setting"] == setting for row in rows)), "")
    return sorted((row for row in rows if row["setting"] in ("", setting)), key=lambda row: row["dataset"] != "")


def _of_any(name: str, agent: str) -> list[Row]:
    """Returns the rows for agents without a file, of the agent's settings those that this one has."""
    has = {entry.name for entry in config.flatten(agents.default(agent), "agent.")}
    return [
        {flag: text for flag, text in row.items() if flag in has or not flag.startswith("agent.")}
        for row in table(name, _ANY)
    ]


@functools.cache
def table(name: str, agent: str) -> tuple[Row, ...]:
    """Returns an agent's rows of a preset, none where it has no file."""
    path = resources.files(__package__) / name / f"{agent}.csv"
    if not path.is_file():
        return ()
    with path.open() as lines:
        return tuple(csv.DictReader(lines))
