"""What a run writes while it trains: log lines, evaluations, divergences. Hosts other than the first are silent."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from flowrl.config import values
from flowrl.experiment.settings import Plan
from flowrl.experiment.sinks import Sinks
from flowrl.machine import hosts, progress
from flowrl.run_folder import logs
from flowrl.run_folder.layout import DIVERGED, SUMMARY
from flowrl.run_folder.summary import acting_notes, evaluation_text, print_summary, summarize, with_success
from flowrl.training import loop
from flowrl.training.loop import Divergence

SLOW_HOURS = 6


class Recorder:
    """Writes what happens in the runs of a plan; all hosts must call it together, each with its own runs.

    Attributes:
        diverged: The runs that have diverged so far.
    """

    def __init__(self, plan: Plan, own: range, evaluations: Mapping[str, Any]):
        """Writes nothing yet.

        Args:
            plan: Of the runs.
            own: The runs of this host.
            evaluations: What the agent is evaluated as.
        """
        self._plan, self._own, self._evaluations = plan, own, evaluations
        self.diverged: dict[int, Divergence] = {}
        self._told = False  # whether an evaluation episode has said that it reached its goal, or not
        self._sinks = Sinks(plan.settings.log, plan.folder, plan.runs, plan.folder.parent.name if plan.swept else None)
        self._steps, self._seconds = 0, 0.0

    def open(self) -> None:
        """Takes up writing, after the lines that are there."""
        self._told = any("success" in line for line in logs.read_lines(self._plan.folder / "eval.jsonl"))
        if hosts.first():
            (self._plan.folder / DIVERGED).unlink(missing_ok=True)
            self._sinks.open()

    def trained(self, steps: int, seconds: float) -> None:
        """Counts steps and their time toward the next line."""
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds

    def log(self, step: int, metrics: Mapping[str, np.ndarray], gathered: Sequence[Mapping[str, float]]) -> None:
        """Writes a line for each run.

        Args:
            step: The step.
            metrics: Means since the last line `[R]` of this host's rows; those that are not finite are left out.
            gathered: What each of its runs has gathered online.
        """
        records = [
            {"step": step, "run": run, **self._plan.runs[run].labels, **self._mark(run)}
            | {f"train/{name}": float(x[row]) for name, x in sorted(metrics.items()) if np.isfinite(x[row])}
            | {f"online/{name}": value for name, value in gathered[row].items()}
            for row, run in enumerate(self._own)
        ]
        rate = self._steps / self._seconds if self._seconds else 0.0
        self._write("metrics", hosts.merged(records))
        if hosts.first():
            time_line = {"step": step, "steps_per_second": round(rate, 3)}
            logs.append_lines(self._plan.folder / "time.jsonl", [time_line])
        self._steps, self._seconds = 0, 0.0

    def evaluated(self, step: int, lines: list[dict[str, Any]]) -> None:
        """Writes the lines of an evaluation of all hosts."""
        names = [*self._evaluations]
        lines = [line | self._mark(line["run"]) for line in lines]
        lines.sort(key=lambda line: names.index(line["mode"]))  # runs stay in order
        self._told |= any("success" in line for line in lines)
        lines = with_success(lines) if self._told else lines
        self._write("eval", lines)
        for name in names:
            tqdm.write(
                evaluation_text(step, [line for line in lines if line["mode"] == name], self._plan.settings.unit)
            )

    def diverging(self, found: Mapping[int, Divergence]) -> None:
        """Notes which of this host's rows have diverged; other than in a sweep, the training ends when all runs have.

        Raises:
            Diverged: It ends.
        """
        own = [event._replace(run=self._own[row]) for row, event in found.items() if row < len(self._own)]
        events = {event.run: event for event in itertools.starmap(Divergence, hosts.merged(own))}
        if events != self.diverged and hosts.first():
            told = [event._asdict() | self._plan.runs[run].labels for run, event in sorted(events.items())]
            logs.write_json(self._plan.folder / DIVERGED, told)
        if len(events) == len(self._plan.runs) and not self._plan.swept:
            loop.end(events)
        for run in events.keys() - self.diverged.keys():
            event, labels = events[run], self._plan.runs[run].labels
            named = ", ".join(f"{name} {value}" for name, value in labels.items())
            tqdm.write(f"run {run} ({named}) diverged: {event.metric} is not finite after {event.step:,}; it is frozen")
        self.diverged = events

    def _mark(self, run: int) -> dict[str, int]:
        """Returns what marks a log line of a run that has diverged."""
        return {"diverged": self.diverged[run].step} if run in self.diverged else {}

    def _write(self, kind: str, records: list[dict[str, Any]]) -> None:
        """Writes the lines of one step from all hosts, `metrics` or `eval`."""
        if hosts.first():
            logs.append_lines(self._plan.folder / f"{kind}.jsonl", records)
            self._sinks.write(kind, records)

    def summarize(self) -> None:
        """Writes and says what the runs have come to."""
        if not hosts.first():
            return
        plan, notes = self._plan, acting_notes(self._evaluations)
        lines = logs.read_lines(plan.folder / "eval.jsonl")
        summary = summarize(
            values(plan.settings), plan.env.env_id, plan.env.dataset, plan.runs, lines, notes, swept=plan.swept
        )
        logs.write_json(plan.folder / SUMMARY, summary)
        print_summary(summary, notes)

    def close(self) -> None:
        """Ends what it writes to."""
        self._sinks.close()


def estimate(rate: float, runs: int, left: int, to_evaluation: int, unit: str) -> str:
    """Says how long the rest of the training takes, and how long it is to the next numbers.

    Args:
        rate: Steps per second of each run.
        runs: How many.
        left: Steps to go.
        to_evaluation: Steps to the next evaluation; as many as are left if there is none before the end.
        unit: What steps are called.
    """
    time_left = progress.duration(left / rate)
    numbers = (
        f"the next evaluation in about {progress.duration(to_evaluation / rate)}, " if to_evaluation < left else ""
    )
    advice = "; --preset=quick is made for small machines" if left / rate > 3600 * SLOW_HOURS else ""
    every = f" of each run, {runs * rate:.1f} in all" if runs > 1 else ""
    return f"{rate:.1f} {unit}/s{every}; {numbers}about {time_left} of training to go, evaluations apart{advice}"
