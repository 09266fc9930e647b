"""Learning curves that authors have released, for bands beside our own where these can be compared, and only there.

The files in `released/` are their numbers laid out anew, each with the notice of the repository it comes from:

- `qam.npz`: Q-learning with Adjoint Matching (https://arxiv.org/abs/2601.14234, ColinQiyangLi/qam). Successes of 50
  episodes of 17 methods on 50 tasks, 12 seeds, every 50,000 updates: a million offline, half a million online.
- `gfp.npz`: Guided Flow Policy (https://arxiv.org/abs/2512.03973). Successes of 300 episodes, 100 at each of the last
  three evaluations, after a million updates, 8 seeds; FQL, ReBRAC and IQL as GFP's authors retuned them.
- `qc.npz`: Q-chunking (https://arxiv.org/abs/2507.07969, ColinQiyangLi/qc). Means with 95 % bootstrap intervals, every
  100,000 steps; single seeds are not released.

Only the offline part is read here. What a name hides: QAM's and QC's scene and puzzle tasks have sparse rewards, their
cube-quadruple and QAM's puzzle-4x4 100M rows of data; these are other problems than ours of the same name.
"""

import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np

from flowrl.reports.curves import Group, data_name
from flowrl.run_folder import statistics
from flowrl.run_folder.statistics import Interval

MILLION = 1_000_000
QAM, GFP, QC = "QAM's authors", "GFP's authors", "QC's authors"
_DEFAULT_TASKS = (
    (r"antsoccer|puzzle-[34]x[34]", 4), (r"antmaze|humanoidmaze|pointmaze", 1), (r"cube|scene|puzzle", 2),
)  # fmt: skip
"""Which task OGBench means by `-singletask` alone, by what a name begins with."""
_SPARSE = {QAM: "scene|puzzle", QC: "scene|puzzle-3x3"}
"""Tasks, by what their names begin with, whose rewards a source made sparse, as --normalize.sparse does."""
_LARGE = {QAM: "puzzle-4x4|cube-quadruple", QC: "cube-quadruple"}
"""Tasks for which a source had 100M rows, which are not OGBench's download."""
_GFP_NAMES = {
    "fql-actor": "FQL", "fql-bc": "FQL's flow", "gfp-actor": "GFP", "gfp-vabc": "GFP's flow",
    "gfp-advantage-actor": "GFP-AWR", "gfp-advantage-vabc": "GFP-AWR's flow", "rebrac": "ReBRAC-GFP", "iql": "IQL",
}  # fmt: skip


class Curve(NamedTuple):
    """What a method reached on a task.

    Attributes:
        method: As its authors call it.
        source: Who ran it.
        updates: After how many updates.
        intervals: Mean and 95 % interval over seeds of the share of successes, one per entry of `updates`.
        scores: Each seed's `[updates, seeds]`; None where they are not released.
    """

    method: str
    source: str
    updates: tuple[int, ...]
    intervals: tuple[Interval, ...]
    scores: np.ndarray | None

    @property
    def agent(self) -> str:
        """What flowrl would call the method."""
        return _plain(self.method)

    @property
    def name(self) -> str:
        """The method, who ran it, and with how many seeds."""
        seeds = "" if self.scores is None else f", {self.scores.shape[1]} seeds"
        return f"{self.method} of {self.source}{seeds}"

    def upto(self, last: int) -> "Curve":
        """Returns the part up to a number of updates."""
        count = sum(updates <= last for updates in self.updates)
        scores = None if self.scores is None else self.scores[:count]
        return self._replace(updates=self.updates[:count], intervals=self.intervals[:count], scores=scores)

    def final(self, steps: Sequence[int]) -> Interval | None:
        """Returns mean and interval over seeds of the mean over evaluations; None where one is lacking.

        Where only the mean and its interval are known of each evaluation, the last of them stands for all: a mean of
        intervals would be none.
        """
        if self.source == GFP:  # which is such a mean already
            return self.intervals[-1] if steps[-1] == self.updates[-1] else None
        if not set(steps) <= set(self.updates):
            return None
        if self.scores is None:
            return self.intervals[self.updates.index(steps[-1])]
        rows = [self.updates.index(step) for step in steps]
        return statistics.mean_interval(self.scores[rows].mean(axis=0))


def canonical(task: str) -> str:
    """Returns the name of a single task of OGBench with its number, which `-singletask` alone leaves out."""
    name = task.removesuffix("-v0")
    if not name.endswith("-singletask"):
        return name
    number = next((number for start, number in _DEFAULT_TASKS if re.match(start, name)), None)
    return name if number is None else f"{name}-task{number}"


# ----------------------------------------------------------------------------------------------------- reading


@functools.cache
def _file(name: str) -> dict[str, np.ndarray]:
    path = resources.files(__package__) / "released" / f"{name}.npz"
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return dict(file)


def _methods(file: dict[str, np.ndarray], part: str) -> list[str]:
    return [key.removeprefix(part) for key in file if key.startswith(part)]


@functools.cache
def of_task(task: str, agents: frozenset[str] | None = None) -> tuple[Curve, ...]:
    """Returns what is released of a task, offline, whether or not our runs can be compared with it.

    Args:
        task: Its name, with or without number and version.
        agents: Which methods, by the names that flowrl would give them; all where none are given.
    """
    found, name = list[Curve](), canonical(task)

    def wanted(method: str) -> bool:
        return agents is None or _plain(method) in agents

    qam, gfp, qc = _file("qam"), _file("gfp"), _file("qc")
    if (row := _row(qam["tasks"], name)) is not None:
        updates = tuple(range(50_000, MILLION + 1, 50_000))
        for method in _methods(qam, "successes/"):
            if method != "RLPD" and wanted(method):  # which is online only
                found.append(_seeded(method, QAM, updates, qam[f"successes/{method}"][row, :20] / 50))
    for method in _methods(gfp, "successes/"):
        if (row := _row(gfp[f"tasks/{method}"], name)) is not None and wanted(_GFP_NAMES[method]):
            scores = gfp[f"successes/{method}"][row][None] / 300
            found.append(_seeded(_GFP_NAMES[method], GFP, (MILLION,), scores))
    if (row := _row(qc["tasks"], name)) is not None:
        for method in _methods(qc, "curves/"):
            steps = np.rint(MILLION * qc[f"steps/{method}"].astype(np.float64)).astype(int)
            kept = [index for index, step in enumerate(steps) if 0 < step <= MILLION]
            if steps[0] == 0 and wanted(method):
                intervals = tuple(Interval(*map(float, qc[f"curves/{method}"][row, :, index])) for index in kept)
                found.append(Curve(method, QC, tuple(int(steps[index]) for index in kept), intervals, None))
    return tuple(found)


def _row(tasks: np.ndarray, name: str) -> int | None:
    (rows,) = np.nonzero(tasks == name)
    return int(rows[0]) if len(rows) else None


def _seeded(method: str, source: str, updates: tuple[int, ...], scores: np.ndarray) -> Curve:
    return Curve(method, source, updates, tuple(statistics.mean_interval(row) for row in scores), scores)


# -------------------------------------------------------------------------------------------------- comparison


def obstacle(group: Group, curve: Curve) -> str:
    """Says why a group's numbers may not stand beside a released curve of its task; or nothing."""
    task = canonical(group.identity["env"])
    sparse, large = (bool(re.match(tasks.get(curve.source, "$"), task)) for tasks in (_SPARSE, _LARGE))
    problems = []
    if sparse != group.sparse:
        problems.append("its rewards are sparse there" if sparse else "our rewards are sparse")
    problems += ["its data have 100M rows there"] if large else []
    if problems:
        return ", and ".join(problems)
    if any(run.config["data"]["origin"] != "official" for run in group.runs):
        return f"theirs is the official download, our data are {data_name(group.runs[0].config)}"
    if group.identity["online.steps"]:
        return "ours learns online"
    if group.identity.get("max_episode_steps") is not None:
        return "our episodes are cut off"
    if group.metric != "success":
        return f"ours is judged by {group.metric}"
    if not set(group.steps) & set(curve.updates):
        ours, theirs = f"{group.steps[-1]:,}", f"{curve.updates[0]:,}"
        return f"no evaluation after the same number of updates: theirs are from {theirs} on, ours end at {ours}"
    return ""


def beside(groups: Sequence[Group], methods: Sequence[str] = ()) -> tuple[list[Curve], list[str]]:
    """Returns the released curves that may stand beside the groups of one environment, and why others may not.

    Args:
        groups: What is shown; a curve must be comparable with each.
        methods: Whose curves; by default those of the agents that are shown.

    Returns:
        The curves as far as the groups go, and one line for each reason.
    """
    env, wanted = groups[0].identity["env"], {_plain(method) for method in methods}
    wanted = wanted or {group.identity["agent"] for group in groups}
    known = of_task(env, frozenset(wanted))
    if not known:
        told = ", ".join(sorted(wanted))
        return [], [f"{env}: no released curves of {told}"]
    found, reasons = list[Curve](), dict[str, list[str]]()
    for curve in known:
        problems = [problem for group in groups if (problem := obstacle(group, curve))]
        if problems:
            reasons.setdefault(problems[0], []).append(f"{curve.method} of {curve.source}")
        else:
            found.append(curve.upto(max(group.steps[-1] for group in groups)))
    return found, [f"{env}: not comparable with {' and '.join(who)}: {why}" for why, who in reasons.items()]


def _plain(method: str) -> str:
    return method.strip().lower().replace("-", "_")
