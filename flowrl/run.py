"""One training run in a run directory: data, environments, logs, checkpoints, summary, resuming."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flowrl import config as configs
from flowrl import devices, envs, estimates, extras, hosts, loggers, loop, progress, resuming, videos
from flowrl.checkpoint import Checkpoints
from flowrl.data import replay, sources
from flowrl.episodes import EnvironmentFailed
from flowrl.errors import SharedError, UserError
from flowrl.evaluate import Evaluator
from flowrl.files import CHECKPOINTS, CONFIG, DIVERGED, LOCK, SUMMARY, claiming, make_folder, unused
from flowrl.loop import Diverged, Divergence, Window
from flowrl.online import Collector, Environments, empty_replays
from flowrl.parts import Parts, build_program, prepare, spec_of
from flowrl.progress import Progress
from flowrl.records import describe, print_banner, record_changes, warn_of_changes
from flowrl.settings import Plan
from flowrl.signals import Signals, promptly, saving, within
from flowrl.sinks import Sinks
from flowrl.streams import root_keys
from flowrl.summary import evaluation_lines, evaluation_text, print_summary, summarize, with_success
from flowrl.train_state import TrainState

SLOW_HOURS = 6
LARGE = 1e3
"""Observations or rewards of that size may be what makes networks diverge."""


def execute(plan: Plan, stored: dict[str, Any] | None = None, signals: Signals | None = None) -> int:
    """Trains as planned, from the start or from the newest checkpoint.

    Args:
        plan: What to do.
        stored: The run's `config.json` if it is resumed.
        signals: Notes signals to stop; for who wants to know of one that came when the run was as good as finished.

    Returns:
        An exit status: 0, or 128 + the signal that stopped the run.

    Raises:
        UserError: Data, folder or checkpoint are unusable, a package is missing, hosts were given different commands,
            or the run diverged.
    """
    hosts.require_same({"--run_dir": str(plan.folder.absolute())})
    hosts.agreed(lambda: extras.check(plan.settings) if hosts.first() else None)
    hosts.agreed(partial(estimates.require, plan, begun=stored is not None))
    with claimed(plan.folder):
        return _execute(plan, stored, signals or Signals())


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes from writing to it; the first host does so for all.

    Where nothing was written to it in the end, it is taken away again.

    Raises:
        UserError: It cannot be written to, another process has it, or hosts do not share it.
    """
    with contextlib.ExitStack() as claims:

        def look() -> None:
            make_folder(folder)
            if not (folder / LOCK).exists():
                raise UserError(f"--run_dir={folder} is not the folder that host 0 has; give one that all hosts share")

        hosts.agreed(lambda: claims.enter_context(claiming(folder)) if hosts.first() else None)
        hosts.agreed(look)
        yield


def _require_unused(plan: Plan) -> None:
    """Checks on the first host that nothing is in the folder of a new run; others may be late to look."""
    if not hosts.first() or unused(plan.folder):
        return
    if (plan.folder / CONFIG).exists():
        raise UserError(f"{plan.folder} is not empty; continue its run with --resume, or choose another --run_dir")
    raise UserError(f"{plan.folder} is not empty and holds no run (no {CONFIG}); choose another --run_dir")


def _located(plan: Plan, stored: dict[str, Any] | None) -> sources.Source:
    """Returns the data of a run, which for one that is resumed must be those that it began with."""
    source = sources.locate(plan.env, plan.settings.data, workers=plan.settings.workers)
    if stored is not None and source.sha256 != stored["data"]["sha256"]:
        raise UserError(
            f"{source.path} is not the data that the run in {plan.folder} began with; give it as --data=PATH"
        )
    return source


def _require_same(config: dict[str, Any]) -> None:
    """Checks that all hosts are about to train the same runs; data may lie in other places."""
    flags = {f"--{name}": value for name, value in config["settings"].items() if name not in ("workers", "data")}
    agent = {f"--agent.{name}": value for name, value in config["agent_config"].items()}
    versions = {f"version of {name}": value for name, value in config["versions"].items()}
    hosts.require_same(flags | agent | versions | {"data": config["data"]["sha256"], "commit": config["git_commit"]})


def _execute(plan: Plan, stored: dict[str, Any] | None, signals: Signals) -> int:
    resume = stored is not None
    if not resume:
        hosts.agreed(partial(_require_unused, plan))
    source = hosts.agreed(partial(_located, plan, stored))
    settings: Any = plan.settings
    layout = devices.layout(len(plan.trials), settings.shard, padded=not settings.online_steps)
    parts = hosts.agreed(partial(prepare, plan, source, layout))
    hosts.agreed(partial(estimates.require, parts.plan, spec_of(parts.sizes), begun=resume))
    plan, config = parts.plan, describe(parts.plan, source)
    _require_same(config)
    with signals, within(None) if hosts.count() > 1 else promptly():  # hosts wait for each other
        run = Run(parts, layout)
        try:
            print_banner(plan, source, run.states, run.layout.devices, parts.facts, parts.doubts)
            if stored is not None:
                warn_of_changes(stored, config)
            elif hosts.first():
                loggers.write_json(plan.folder / CONFIG, config)
            run.train(signals, resume=resume)
        except loop.Stopped:
            print(f"stopped at {plan.unit} {run.checkpoints.latest()}; continue with --resume --run_dir={plan.folder}")
            return 128 + max(hosts.gather(int(signals.received or 0)))
        except Diverged as error:
            raise SharedError(_diverged(run, error.divergence)) from error
        except EnvironmentFailed as error:
            raise UserError(
                f"{error}; mend the environment, and --resume --run_dir={plan.folder} goes on from {plan.unit} "
                f"{run.checkpoints.latest()}"
            ) from error
        finally:
            with promptly():
                run.close()
    return 0


def _diverged(run: "Run", event: Divergence) -> str:
    """Says where a training diverged, and what may have made it: the step size only where it is a large one."""
    plan, rate = run.plan, float(getattr(run.plan.agent_config, "learning_rate", 0))
    usual: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(plan.agent_config)} | plan.preset.agent
    told = (
        f"diverged: {event.metric} of the run with seed {plan.trials[event.run].seed} is not finite after update "
        f"{event.step}; the checkpoint at {run.checkpoints.latest()} in {plan.folder} is from before it; "
    )
    if rate > float(usual.get("learning_rate", rate)):
        return f"{told}try a smaller --agent.learning_rate than {rate:g}"
    if (largest := run.largest()) is not None and largest[1] > LARGE:
        name, size = largest
        remedy = "--normalize_observations" if "observations" in name else "a smaller --reward_scale"
        return f"{told}the data's {name} are as large as {size:.3g}: try {remedy}"
    return f"{told}look at what grew before in metrics.jsonl; smaller weights of the losses or step sizes may help"


def _stopping(signals: Signals) -> bool:
    """Whether one of the hosts is to stop; each must ask this the same number of times."""
    return any(hosts.gather(signals.received is not None))


class _BrokenOff(Exception):
    """Breaks off an evaluation because the run is to stop."""


class Run:
    """The parts of one training run, and what it does between chunks of training.

    With several hosts each evaluates its own runs, and the first writes what all of them have to say.
    """

    def __init__(self, parts: Parts, layout: devices.Layout):
        self.plan, self.agent, sizes, self.dataset = parts[:4]
        self.layout = layout
        self.spec, self.tasks = spec_of(sizes), sizes.tasks
        plan, agent = self.plan, self.agent
        settings: Any = plan.settings
        self.keys = self.layout.keys([trial.seed for trial in plan.trials])
        self.program = build_program(parts, self.layout)
        hyper = configs.hypers(plan.agent_config, [trial.values for trial in plan.trials])
        rows = {name: self.layout.filled(values) for name, values in hyper.items()}
        self.states, self.window = self.program.start(self.keys, self.layout.place(rows, mapped=True))
        self.diverged: dict[int, Divergence] = {}
        self.checkpoints = Checkpoints(plan.folder / CHECKPOINTS, settings.keep_checkpoints)
        self.evaluator: Evaluator | None = None
        self.own = self.layout.own
        if settings.eval_episodes and self.own:
            self.evaluator = Evaluator(
                agent,
                envs.factory(plan.env),
                root_keys(jnp.array([plan.trials[run].seed for run in self.own], jnp.uint32)),
                tasks=sizes.tasks,
                episodes=settings.eval_episodes,
                workers=settings.workers,
                slots=envs.most(plan.env),
            )
        self.told = False  # whether an evaluation episode has said that it reached its goal, or not
        self.collector: Collector | None = None
        self.sinks = Sinks(plan)
        self.bar: Progress | None = None
        self.steps, self.seconds, self.announced, self.warm_chunks = 0, 0.0, False, 0

    def train(self, signals: Signals, *, resume: bool) -> None:
        """Trains to the end and writes the summary."""
        settings: Any = self.plan.settings
        step, evaluated = self._restore() if resume else (0, True)
        if hosts.first():
            (self.plan.folder / DIVERGED).unlink(missing_ok=True)
            self.sinks.open()
        self.diverging(loop.divergences(self.window))
        if self.checkpoints.latest() is None:
            self._checkpoint(0, self.states, self.window, True)
        if _stopping(signals):
            raise loop.Stopped  # before the program is compiled
        total = settings.steps + settings.online_steps
        self.bar = Progress("training", self.plan.unit, total, step, hidden=hosts.no_bars())
        states, window = self.states, self.window
        del self.states, self.window  # the loop gives them away
        if self.collector is None and settings.steps and (step < settings.steps or not evaluated):
            states, window = self._train_offline(signals, states, window, step, evaluated)
            step, evaluated = settings.steps, True
        if settings.online_steps:
            states, window = self._train_online(signals, states, window, step, evaluated)
        self.bar.close()
        if hosts.first():
            summary = summarize(self.plan, loggers.read_lines(self.plan.folder / "eval.jsonl"))
            loggers.write_json(self.plan.folder / SUMMARY, summary)
            print_summary(summary)
        if not all(hosts.gather(self._film(states, signals))):
            raise loop.Stopped
        self.sinks.close()
        hosts.wait()  # which may take the first long, for the network

    def _train_offline(
        self, signals: Signals, states: TrainState, window: Window, step: int, evaluated: bool
    ) -> tuple[TrainState, Window]:
        chunk = self._compiled(states, window, self.keys, self.dataset, np.int32(1))

        def advance(states: TrainState, window: Window, steps: int) -> tuple[TrainState, Window]:
            return chunk(states, window, self.keys, self.dataset, np.int32(steps))

        schedule = self.plan.schedule(online=False)
        hooks = self._hooks(signals, schedule)
        with self._patient():
            return loop.train(advance, schedule, hooks, states, window, step=step, evaluated=evaluated)

    def _train_online(
        self, signals: Signals, states: TrainState, window: Window, step: int, evaluated: bool
    ) -> tuple[TrainState, Window]:
        if self.collector is None:
            self.collector, window = self._collector(), loop.clear(window)
        collector = self.collector
        arguments = (states, window, self.keys, self.dataset, np.int32(1), collector.replays)
        collector.program = self.program._replace(chunk=self._compiled(*arguments))
        schedule, unit = self.plan.schedule(online=True), self.plan.online.num_envs
        self.announced = False
        hooks = self._hooks(signals, schedule)
        with self._patient():
            return loop.train(
                collector.advance, schedule, hooks, states, window, step=step, unit=unit, evaluated=evaluated
            )

    def _collector(
        self, step: int = 0, episodes: np.ndarray | None = None, replays: replay.Replay | None = None
    ) -> Collector:
        """Returns the online part after `step` environment steps, with new environments."""
        options, make_env = self.plan.online, envs.factory(self.plan.env)
        vectorization: Any = self.plan.settings.vectorization
        environments = Environments(make_env, self.keys, options.num_envs, episodes, vectorization)
        return Collector(
            self.agent,
            self.spec,
            self.program,
            environments,
            self.keys,
            options,
            self.dataset,
            step,
            replays,
            layout=self.layout,
        )

    def _hooks(self, signals: Signals, schedule: loop.Schedule) -> loop.Hooks:
        return loop.Hooks(
            log=self._log,
            evaluate=lambda step, states: self._evaluate(step, states, signals),
            checkpoint=self._checkpoint,
            progress=partial(self._progress, schedule),
            stopping=partial(_stopping, signals),
            diverged=self.diverging,
            pace=lambda seconds: max(hosts.gather(seconds)),
        )

    def diverging(self, found: dict[int, Divergence]) -> None:
        """Notes which runs have diverged; other than in a sweep, the training ends when all have.

        Raises:
            Diverged: It ends.
        """
        own = [event._replace(run=self.own[run]) for run, event in found.items() if run < len(self.own)]
        found = {event.run: event for event in itertools.starmap(Divergence, hosts.merged(own))}
        if found != self.diverged and hosts.first():
            self._record(found)
        if len(found) == len(self.plan.trials) and not self.plan.grid:
            loop.end(found)
        for run in found.keys() - self.diverged.keys():
            event, labels = found[run], self.plan.trials[run].labels
            named = ", ".join(f"{name} {value}" for name, value in labels.items())
            tqdm.write(f"run {run} ({named}) diverged: {event.metric} is not finite after {event.step:,}; it is frozen")
        self.diverged = found

    def _record(self, found: dict[int, Divergence]) -> None:
        """Writes where runs diverged."""
        events = [event._asdict() | self.plan.trials[run].labels for run, event in sorted(found.items())]
        loggers.write_json(self.plan.folder / DIVERGED, events)

    def largest(self) -> tuple[str, float] | None:
        """Returns the field of the offline data with the largest number, before any normalisation, and that number."""
        fields = {} if self.dataset is None else self.dataset.fields
        sizes = {name: float(jnp.abs(fields[name]).max()) for name in ("observations", "rewards") if name in fields}
        return max(sizes.items(), key=lambda item: item[1]) if sizes else None

    def _mark(self, run: int) -> dict[str, int]:
        """Returns what marks a log line of a run that has diverged."""
        return {"diverged": self.diverged[run].step} if run in self.diverged else {}

    def close(self) -> None:
        """Ends worker processes and threads."""
        if self.bar is not None:
            self.bar.close()
        if self.collector is not None:
            self.collector.environments.close()
        if self.evaluator is not None:
            self.evaluator.close()
        self.checkpoints.close()
        self.sinks.close()

    def _patient(self) -> Any:
        """Gives a signal the time until a chunk is over and all is saved; hosts wait for each other."""
        return within(None) if hosts.count() > 1 else saving()

    def _compiled(self, *arguments: Any) -> Any:
        """Returns `chunk`, compiled for these arguments."""
        began = time.perf_counter()
        with progress.waiting("compiling", hidden=hosts.no_bars()):
            compiled = self.program.chunk.lower(*arguments).compile()
        tqdm.write(f"compiled in {time.perf_counter() - began:.1f} s")
        return compiled

    def _restore(self) -> tuple[int, bool]:
        """Loads the newest checkpoint and takes log lines from after it out.

        Returns:
            Its step, and whether the evaluation due there was done.
        """
        step = self.checkpoints.latest()
        if step is None:
            hosts.agreed(lambda: self._start_anew() if hosts.first() else None)
            return 0, True
        facts = self.checkpoints.facts()
        if facts["agent"] != self.plan.settings.agent:
            raise UserError(
                f"the checkpoint in {self.plan.folder} is of agent {facts['agent']}, not {self.plan.settings.agent} as "
                "its config.json says; put the right config.json back, or start a new run in another --run_dir"
            )
        if "episodes" in facts:
            empty = empty_replays(self.spec, self.plan.online.capacity, self.agent.needs, self.layout)
            like = devices.shapes((self.states, self.window, empty))
            del self.states, self.window, empty  # there may be no memory for both
            self.states, self.window, buffers = self.checkpoints.restore(like)
            begun = np.array(facts["episodes"], np.int32) + 1  # those under way are lost
            self.collector = self._collector(step - int(self.plan.settings.steps or 0), begun, buffers)
        else:
            like = devices.shapes((self.states, self.window))
            del self.states, self.window
            self.states, self.window = self.checkpoints.restore(like)
        schedule = self.plan.schedule(online=self.collector is not None)
        evaluated = facts["evaluated"] or not schedule.due("eval", step)
        reached = resuming.Reached(
            step, facts["evaluated"], self.agent.evaluations, max(1, self.tasks), self.checkpoints.steps()
        )
        hosts.agreed(lambda: self._continue_logs(reached) if hosts.first() else None)
        self.told = any("success" in line for line in loggers.read_lines(self.plan.folder / "eval.jsonl"))
        print(f"resuming from {self.plan.unit} {step:,}")
        return step, evaluated

    def _start_anew(self) -> None:
        """Lets a run that was killed before its first checkpoint begin again."""
        resuming.require_unbegun(self.plan.folder)
        record_changes(self.plan)

    def _continue_logs(self, reached: resuming.Reached) -> None:
        """Checks the logs up to the checkpoint and takes out what comes after it.

        Changes are recorded between the two: a kill then leaves logs that hold more than the recorded settings ask for,
        never less.
        """
        cuts = resuming.cuts(self.plan, reached)
        record_changes(self.plan)
        resuming.apply(cuts)

    def _log(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        gathered: list[dict[str, float]] = [{}] * len(self.own)
        if self.collector is not None:
            gathered = self.collector.environments.drain()
        records = [
            {"step": step, "run": run, **self.plan.trials[run].labels, **self._mark(run)}
            | {f"train/{name}": float(values[row]) for name, values in sorted(metrics.items()) if _known(values[row])}
            | {f"online/{name}": value for name, value in gathered[row].items()}
            for row, run in enumerate(self.own)
        ]
        rate = self.steps / self.seconds if self.seconds else 0.0
        self._write("metrics", hosts.merged(records))
        if hosts.first():
            time_line = {"step": step, "steps_per_second": round(rate, 3)}
            loggers.append_lines(self.plan.folder / "time.jsonl", [time_line])
        self.steps, self.seconds = 0, 0.0

    def _write(self, kind: str, records: list[dict[str, Any]]) -> None:
        """Writes the lines of one step from all hosts, `metrics` or `eval`."""
        if hosts.first():
            loggers.append_lines(self.plan.folder / f"{kind}.jsonl", records)
            self.sinks.write(kind, records)

    def _evaluate(self, step: int, states: TrainState, signals: Signals) -> bool:
        """Evaluates the runs of all hosts and logs that; false if one of them is to stop."""
        if not self.plan.settings.eval_episodes:
            return True
        policies = self._own_policies(states)
        found = hosts.gather(None if self.evaluator is None else self._outcomes(step, policies, signals))
        if any(lines == [] for lines in found):
            return False
        lines = [line for own in found for line in own or ()]
        lines.sort(key=lambda line: self.agent.evaluations.index(line["mode"]))  # runs stay in order
        self.told |= any("success" in line for line in lines)
        lines = with_success(lines) if self.told else lines
        self._write("eval", lines)
        for mode in self.agent.evaluations:
            tqdm.write(evaluation_text(step, [line for line in lines if line["mode"] == mode], self.plan.unit))
        return True

    def _own_policies(self, states: TrainState) -> Any:
        """Returns the policies of this host's runs, on one device; all hosts must ask for them together."""
        policies = devices.local(self.program.policies(states))
        return jax.tree.map(lambda x: jnp.asarray(x[: len(self.own)]), policies)

    def _outcomes(self, step: int, policies: Any, signals: Signals) -> list[dict[str, Any]]:
        """Evaluates the runs of this host, and returns the lines of their log; none if the run is to stop."""
        assert self.evaluator is not None
        trials, episodes = self.plan.trials[self.own.start : self.own.stop], int(self.plan.settings.eval_episodes or 0)
        total = len(trials) * max(1, self.tasks) * episodes * len(self.agent.evaluations)
        bar = Progress("evaluating", "episode", total, hidden=hosts.no_bars(), leave=False)

        def on_step(before: int, done: int, _: int) -> None:
            bar.to(before + done)
            if signals.received is not None:
                raise _BrokenOff

        lines: list[dict[str, Any]] = []
        try:
            for i, mode in enumerate(self.agent.evaluations):
                before = i * total // len(self.agent.evaluations)
                outcome = self.evaluator(policies, partial(on_step, before), mode=mode)
                lines += evaluation_lines(step, trials, mode, outcome, self.plan.env, first_run=self.own.start)
        except _BrokenOff:
            return []
        finally:
            bar.close()
        return [line | self._mark(line["run"]) for line in lines]

    def _film(self, states: TrainState, signals: Signals) -> bool:
        """Makes the videos that were asked for, on the first host; where nothing can be drawn it says so.

        Returns:
            False if it was broken off because the run is to stop.
        """
        settings: Any = self.plan.settings
        if not settings.video_episodes:
            return True
        policies = self._own_policies(states)
        if self.evaluator is None or not hosts.first():
            return True
        total = max(1, self.tasks) * settings.video_episodes
        with Progress("filming", "episode", total, hidden=hosts.no_bars(), leave=False) as bar:

            def on_step(done: int, _: int) -> None:
                bar.to(done)
                if signals.received is not None:
                    raise _BrokenOff

            try:
                videos.record(self.plan, self.evaluator, policies, settings.steps + settings.online_steps, on_step)
            except videos.NotDrawn as error:
                tqdm.write(f"warning: {error}")
            except _BrokenOff:
                return False
        return True

    def _checkpoint(self, step: int, states: TrainState, window: Window, evaluated: bool) -> None:
        facts: dict[str, Any] = {"agent": self.plan.settings.agent, "evaluated": evaluated}
        arrays: tuple[Any, ...] = (states, window)
        if self.collector is not None:
            facts["episodes"] = self.collector.environments.episodes.tolist()
            arrays = (states, window, self.collector.replays)
        with within(None):
            self.checkpoints.save(step, arrays, facts)

    def _progress(self, schedule: loop.Schedule, step: int, steps: int, seconds: float) -> None:
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        runs = len(self.plan.trials)
        if self.bar is not None:
            self.bar.to(step, f"{runs * steps / seconds:,.0f} run-{self.plan.unit}s/s" if runs > 1 else "")
        if self.collector is not None and self.collector.warm:
            self.warm_chunks += 1  # in the first, acting is still being compiled
        if not self.announced and (self.collector is None or self.warm_chunks > 1):
            self.announced = True
            unit = "updates" if self.collector is None else "steps"
            tqdm.write(_estimate(steps / seconds, runs, schedule.steps - step, unit))


def _known(value: np.floating) -> bool:
    """Whether a mean can be logged; finite values whose sum is not have none."""
    return bool(np.isfinite(value))


def _estimate(rate: float, runs: int, left: int, unit: str) -> str:
    """Says how long the rest of the training takes."""
    time_left = progress.duration(left / rate)
    advice = "; --preset=quick is made for small machines" if left / rate > 3600 * SLOW_HOURS else ""
    every = f" of each run, {runs * rate:.1f} in all" if runs > 1 else ""
    return f"{rate:.1f} {unit}/s{every}; about {time_left} of training to go, evaluations apart{advice}"
