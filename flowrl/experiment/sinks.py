"""Copies of a run's numbers for other tools, if asked for: CSV files, TensorBoard, Weights & Biases.

`metrics.jsonl` and `eval.jsonl` are what counts. A sink begins empty, is given all that they hold, and then each batch
of lines as it is written; so what a resumed run has dropped from them is gone from the sinks too.
"""

import contextlib
import csv
import itertools
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from flowrl.config import MOST_COUNT, record, static
from flowrl.errors import UserError
from flowrl.machine import packages, schema
from flowrl.machine.files import replacing
from flowrl.run_folder import formats, logs
from flowrl.run_folder.layout import CONFIG
from flowrl.run_folder.runs import Run

KINDS = ("metrics", "eval")
"""The files whose lines go to sinks, in the order in which one step writes them."""
PROJECT = "flowrl"
"""The project that runs belong to in Weights & Biases."""
_OUTCOMES = ("success", "normalized_score", "return", "length")
Records = Sequence[Mapping[str, Any]]


@record
class Log:
    """When a run's numbers are written, and where they go besides; this changes nothing else of it."""

    interval: int = static(
        5_000, "Updates, or online steps, that one log line averages.", high=MOST_COUNT, learning=False
    )
    csv: bool = static(False, "Also write metrics.csv and eval.csv.", resumable=True, learning=False)
    tensorboard: bool = static(
        False, "Also write event files for TensorBoard; needs the extra tensorboard.", resumable=True, learning=False
    )
    wandb: bool = static(
        False, "Also log to Weights & Biases, project flowrl; needs the extra wandb.", resumable=True, learning=False
    )
    video_episodes: int = static(
        0, "Episodes per task of the first run's last evaluation to make videos of; needs the extra video.",
        low=0, high=MOST_COUNT, resumable=True, learning=False,
    )  # fmt: skip

    def require_packages(self) -> None:
        """Checks that what is asked for can be written.

        Raises:
            UserError: A package is missing, or nobody is logged in to Weights & Biases.
        """
        packages.check(tensorboard=self.tensorboard, wandb=self.wandb, video=self.video_episodes > 0)


class Sink(Protocol):
    """One place that numbers go to."""

    def write(self, kind: str, records: Records) -> None:
        """Takes the lines of one kind that one step has written."""

    def close(self) -> None:
        """Ends it."""


class Sinks:
    """The sinks that the settings of a run ask for; one that fails is given up with a warning, and the run goes on."""

    def __init__(self, log: Log, folder: Path, runs: Sequence[Run], group: str | None = None):
        """Takes what is asked for, which `open` begins.

        Args:
            log: Which.
            folder: Of the runs.
            runs: The runs.
            group: What the runs belong to, such as a sweep; their folder's name if nothing.
        """
        self._folder = folder
        self._asked: dict[str, Callable[[], Sink]] = {}
        if log.csv:
            self._asked["csv"] = partial(Csv, folder)
        if log.tensorboard:
            self._asked["tensorboard"] = partial(TensorBoard, folder, runs)
        if log.wandb:
            self._asked["wandb"] = partial(Wandb, folder, runs, group)
        self._sinks: dict[str, Sink] = {}

    def open(self) -> None:
        """Opens them with what the run has written so far."""
        for name, make in self._asked.items():
            with self._forgiving(name):
                self._sinks[name] = make()
        for kind, records in history(self._folder):
            self.write(kind, records)

    def write(self, kind: str, records: Records) -> None:
        """Hands on the lines that one step has written to a file of this kind."""
        for name, sink in [*self._sinks.items()]:
            with self._forgiving(name):
                sink.write(kind, records)

    def close(self) -> None:
        """Ends them all."""
        for name, sink in [*self._sinks.items()]:
            with self._forgiving(name):
                sink.close()
        self._sinks.clear()

    @contextlib.contextmanager
    def _forgiving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever another's library raises, hours of training are worth more
            self._sinks.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            tqdm.write(
                f"warning: --log.{name} failed ({reason}) and gets no more numbers; the run goes on, its JSONL files "
                "hold them all, and a --resume fills it anew"
            )


def history(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields what a run directory's files hold in the batches, and the order, in which it was written."""
    lines = [
        ((line["step"], order), line)
        for order, kind in enumerate(KINDS)
        for line in logs.read_lines(folder / f"{kind}.jsonl")
    ]
    by_time = sorted(lines, key=lambda line: line[0])
    for (_, order), batch in itertools.groupby(by_time, key=lambda line: line[0]):
        yield KINDS[order], [line for _, line in batch]


def run_name(run: Run) -> str:
    """Returns what a run is called beside the others of its program: `seed=0,agent.learning_rate=0.001`."""
    return ",".join(f"{name}={value}" for name, value in run.labels.items())


def scalars(kind: str, records: Records) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Yields for each run in the lines of one step its index, the step and its numbers by name.

    An evaluation's are `eval/success`, the mean over tasks, and `eval/task1/success`, … where there are several; those
    of choices among several actions begin with `best_of_n` instead.
    """
    by_run: dict[int, list[Mapping[str, Any]]] = {}
    for line in records:
        by_run.setdefault(line["run"], []).append(line)
    for run, own in by_run.items():
        marks = {name: float(own[0][name]) for name in ("diverged",) if name in own[0]}
        numbers = _evaluation(own) if kind == "eval" else {name: own[0][name] for name in own[0] if "/" in name}
        yield run, own[0]["step"], numbers | marks


def _evaluation(lines: Records) -> dict[str, float]:
    found: dict[str, float] = {}
    for mode, name in itertools.product(dict.fromkeys(line["mode"] for line in lines), _OUTCOMES):
        values = {line["task"]: line[name] for line in lines if line["mode"] == mode and name in line}
        if values:
            found[f"{mode}/{name}"] = float(np.mean([*values.values()]))
        if len(values) > 1:
            found |= {f"{mode}/task{task}/{name}": value for task, value in values.items()}
    return found


# --------------------------------------------------------------------------------------------------------- CSV


class Csv:
    """`metrics.csv` and `eval.csv` in the run directory: a row per line, a column per name, empty where there is none.

    Columns stand in the order in which their names first appear.
    """

    def __init__(self, folder: Path):
        self._paths = {kind: folder / f"{kind}.csv" for kind in KINDS}
        self._columns: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for path in self._paths.values():
            path.unlink(missing_ok=True)

    def write(self, kind: str, records: Records) -> None:
        """Appends rows; a name that is new makes the file anew with one more column."""
        path, columns = self._paths[kind], self._columns[kind]
        names = [*dict.fromkeys([*columns, *(name for record in records for name in record)])]
        if names == columns:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerows(records)
            return
        before: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                before = list(csv.DictReader(file))
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows([*before, *records])
        self._columns[kind] = names

    def close(self) -> None:
        """Has nothing to do: files are not kept open."""


# ------------------------------------------------------------------------------------------------- TensorBoard


class TensorBoard:
    """Event files in `tensorboard/<run>`, a folder for each run that is mapped."""

    def __init__(self, folder: Path, runs: Sequence[Run]):
        from tensorboardX import SummaryWriter

        for old in (folder / "tensorboard").rglob("events.out.tfevents.*"):
            old.unlink()
        self._writers = [SummaryWriter(str(folder / "tensorboard" / run_name(run))) for run in runs]

    def write(self, kind: str, records: Records) -> None:
        """Adds the numbers of one step."""
        for run, step, numbers in scalars(kind, records):
            for name, value in numbers.items():
                self._writers[run].add_scalar(name, value, step)
            self._writers[run].flush()

    def close(self) -> None:
        """Ends the writers' threads."""
        for writer in self._writers:
            writer.close()


# -------------------------------------------------------------------------------------------- Weights & Biases


class Wandb:
    """A run of Weights & Biases for each run that is mapped, by the ids in `wandb.json`.

    What it has received cannot be taken back, and it takes its own steps in rising order only. These are twice ours,
    and one more for evaluations: so a resumed run, which repeats its numbers exactly, adds just those that are missing.
    """

    def __init__(self, folder: Path, runs: Sequence[Run], group: str | None):
        import wandb

        config, part = schema.read(folder / CONFIG, formats.CONFIG), folder.resolve()
        told = {name: config[name] for name in ("command", "settings", "preset", "git_commit", "hardware", "versions")}
        self._runs, self._begin = [], []
        for own, own_id in zip(runs, _ids(folder, len(runs)), strict=True):
            for old in (folder / "wandb").glob(f"offline-run-*-{own_id}"):
                shutil.rmtree(old)  # which the new one repeats
            run = wandb.init(
                project=PROJECT,
                group=group or part.name,
                name=f"{part.name} {run_name(own)}",
                id=own_id,
                resume="allow",
                reinit="create_new",
                dir=str(folder),
                config=told | {"agent": config["agent_config"] | dict(own.values), "seed": own.seed},
                settings=wandb.Settings(console="off"),
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            self._runs.append(run)
            self._begin.append(run.step)

    def write(self, kind: str, records: Records) -> None:
        """Sends the numbers of one step, unless they were sent before the run was resumed."""
        for run, step, numbers in scalars(kind, records):
            position = 2 * step + KINDS.index(kind)
            if position >= self._begin[run]:
                self._runs[run].log({"step": step, **numbers}, step=position, commit=True)

    def close(self) -> None:
        """Waits until all is sent."""
        for run in self._runs:
            run.finish()


def _ids(folder: Path, runs: int) -> list[str]:
    """Returns the ids of the runs, which the run directory keeps.

    Raises:
        UserError: The file that keeps them is damaged.
    """
    path = folder / "wandb.json"
    if not path.exists():
        logs.write_json(path, {"ids": [secrets.token_hex(8) for _ in range(runs)]})
    ids: list[str] = schema.read(path, formats.WANDB, remedy="delete it to begin new ones")["ids"]
    if len(ids) != runs:
        raise UserError(f"{path} has {len(ids)} ids for {runs} runs; delete it to begin new ones")
    return ids
