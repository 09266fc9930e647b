"""A training run at work: its states on the devices, its environments, and what it does between chunks of training."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from flowrl import config as configs
from flowrl.data.replay import Replay
from flowrl.errors import UserError
from flowrl.experiment import resuming
from flowrl.experiment.banner import record_changes
from flowrl.experiment.build import Parts, build_program, online_kind
from flowrl.experiment.examiner import Examiner
from flowrl.experiment.recorder import Recorder, estimate
from flowrl.machine import devices, hosts, progress
from flowrl.machine.progress import Progress
from flowrl.machine.signals import Signals, saving, within
from flowrl.run_folder.layout import CHECKPOINTS
from flowrl.training import loop
from flowrl.training.checkpoint import Checkpoints
from flowrl.training.compiled import States
from flowrl.training.online import Collector, Environments, empty_replays
from flowrl.training.step import Totals


class Runner:
    """The parts of one training run, and what it does between chunks of training.

    With several hosts each evaluates its own runs, and the first writes what all of them have to say.

    Attributes:
        parts: What it is put together from.
        layout: The devices of the runs.
        states: Of the runs, until they are trained.
        checkpoints: Those of its folder.
    """

    def __init__(self, parts: Parts, layout: devices.Layout, signals: Signals):
        self.parts, self.layout, self._signals = parts, layout, signals
        plan, agent, settings = parts.plan, parts.agent, parts.plan.settings
        self._keys = layout.keys([run.seed for run in plan.runs])
        self._program = build_program(parts, layout)
        stacked = configs.stacked(plan.config, [run.values for run in plan.runs])
        self._configs = layout.place(jax.tree.map(layout.filled, stacked), mapped=True)
        self.states, self._totals = self._program.start(self._keys, self._configs)
        self.checkpoints = Checkpoints(plan.folder / CHECKPOINTS, settings.checkpoint.keep)
        self._examiner = Examiner(parts, layout, self._program, signals)
        self._recorder = Recorder(plan, layout.own, agent.evaluations(plan.config))
        self._collector: Collector | None = None
        self._bar: Progress | None = None
        self._announced, self._warm_chunks = False, 0

    def train(self, *, resume: bool) -> None:
        """Trains to the end and writes the summary.

        Raises:
            Stopped: It was asked to stop, and has saved where it is.
            Diverged: All runs have diverged.
        """
        settings = self.parts.plan.settings
        step, evaluated = self._restore() if resume else (0, True)
        self._recorder.open()
        self._recorder.diverging(loop.divergences(self._totals))
        if self.checkpoints.latest() is None:
            self._checkpoint(0, self.states, self._totals, True)
        if self._stopping():
            raise loop.Stopped  # before the program is compiled
        self._bar = Progress("training", settings.unit, settings.total, step, hidden=hosts.no_bars())
        states, totals = self.states, self._totals
        del self.states, self._totals  # the loop gives them away
        if self._collector is None and settings.steps and (step < settings.steps or not evaluated):
            states, totals = self._train_offline(states, totals, step, evaluated)
            step, evaluated = settings.steps, True
        if settings.online.steps and (step < settings.total or not evaluated):
            states, totals = self._train_online(states, totals, step, evaluated)
        self._bar.close()
        self._recorder.summarize()
        if not all(hosts.gather(self._examiner.film(states))):
            raise loop.Stopped
        self._recorder.close()
        hosts.wait()  # which may take the first long, for the network

    def _train_offline(self, states: States, totals: Totals, step: int, evaluated: bool) -> tuple[States, Totals]:
        dataset = self.parts.dataset
        chunk = self._compiled(states, totals, self._keys, dataset, np.int32(1))

        def advance(states: States, totals: Totals, steps: int) -> tuple[States, Totals]:
            trained: tuple[States, Totals] = chunk(states, totals, self._keys, dataset, np.int32(steps))
            return trained

        schedule = self._schedule(self.parts.plan.settings.steps)
        with self._patient():
            return loop.train(advance, schedule, self._hooks(schedule), states, totals, step=step, evaluated=evaluated)

    def _train_online(self, states: States, totals: Totals, step: int, evaluated: bool) -> tuple[States, Totals]:
        if self._collector is None:
            self._collector, totals = self._new_collector(), loop.clear(totals)
        collector, settings = self._collector, self.parts.plan.settings
        states = states.replace(config=self.parts.agent.online(states.config))
        arguments = (states, totals, self._keys, self.parts.dataset, np.int32(1), collector.replays)
        collector.program = self._program._replace(chunk=self._compiled(*arguments))
        schedule, unit = self._schedule(settings.total), settings.online.num_envs
        self._announced = False
        hooks = self._hooks(schedule)
        start = (states, totals)
        with self._patient():
            return loop.train(collector.advance, schedule, hooks, *start, step=step, unit=unit, evaluated=evaluated)

    def _new_collector(
        self, step: int = 0, episodes: np.ndarray | None = None, replays: Replay | None = None
    ) -> Collector:
        """Returns the online part after `step` environment steps, with new environments."""
        parts, options = self.parts, self.parts.plan.settings.online
        make_env = parts.plan.env.factory()
        environments = Environments(make_env, self._keys, options.num_envs, episodes, options.vectorization)
        return Collector(
            parts.agent,
            parts.facts.spec,
            self._program,
            environments,
            self._keys,
            options,
            online_kind(parts),
            parts.dataset,
            parts.normalizer,
            step,
            replays,
            self.layout,
        )

    def _schedule(self, last: int) -> loop.Schedule:
        """Returns when things happen until a step."""
        settings = self.parts.plan.settings
        return loop.Schedule(last, settings.log.interval, settings.eval.interval, settings.checkpoint.interval)

    def _hooks(self, schedule: loop.Schedule) -> loop.Hooks:
        return loop.Hooks(
            log=self._log,
            evaluate=self._evaluate,
            checkpoint=self._checkpoint,
            progress=partial(self._progress, schedule),
            stopping=self._stopping,
            diverged=self._recorder.diverging,
            pace=lambda seconds: max(hosts.gather(seconds)),
        )

    def _stopping(self) -> bool:
        """Whether one of the hosts is to stop; each must ask this the same number of times."""
        return any(hosts.gather(self._signals.received is not None))

    def _patient(self) -> Any:
        """Gives a signal the time until a chunk is over and all is saved; hosts wait for each other."""
        return within(None) if hosts.count() > 1 else saving()

    def _compiled(self, *arguments: Any) -> Any:
        """Returns `chunk`, compiled for these arguments."""
        began = time.perf_counter()
        with progress.waiting("compiling", hidden=hosts.no_bars()):
            compiled = self._program.chunk.lower(*arguments).compile()
        tqdm.write(f"compiled in {time.perf_counter() - began:.1f} s")
        return compiled

    def _log(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        gathered = self._collector.environments.drain() if self._collector else [{} for _ in self.layout.own]
        self._recorder.log(step, metrics, gathered)

    def _progress(self, schedule: loop.Schedule, step: int, steps: int, seconds: float) -> None:
        self._recorder.trained(steps, seconds)
        runs, unit = len(self.parts.plan.runs), self.parts.plan.settings.unit
        if self._bar is not None:
            self._bar.to(step, f"{runs * steps / seconds:,.0f} run-{unit}s/s" if runs > 1 else "")
        if self._collector is not None and self._collector.warm:
            self._warm_chunks += 1  # in the first, acting is still being compiled
        if not self._announced and (self._collector is None or self._warm_chunks > 1):
            self._announced = True
            counted = "updates" if self._collector is None else "steps"
            left = schedule.steps - step
            evaluated = self.parts.plan.settings.eval.episodes
            to_evaluation = schedule.next_stop(step, schedule.eval_interval) - step if evaluated else left
            tqdm.write(estimate(steps / seconds, runs, left, to_evaluation, counted))

    # ------------------------------------------------------------------------------------ evaluation and checkpoints

    def _evaluate(self, step: int, states: States) -> bool:
        """Evaluates the runs of all hosts and logs that; false if one of them is to stop."""
        if not self.parts.plan.settings.eval.episodes:
            return True
        lines = self._examiner.lines(step, states)
        if lines is not None:
            self._recorder.evaluated(step, lines)
        return lines is not None

    def _checkpoint(self, step: int, states: States, totals: Totals, evaluated: bool) -> None:
        facts: dict[str, Any] = {"agent": self.parts.plan.settings.agent, "evaluated": evaluated}
        replays = None
        if self._collector is not None:
            facts["episodes"] = self._collector.environments.episodes.tolist()
            replays = self._collector.replays
        with within(None):
            self.checkpoints.save(step, self._saved(states, totals, replays), facts)

    def _saved(self, states: States, totals: Totals, replays: Replay | None) -> dict[str, Any]:
        """Returns what a checkpoint holds; configurations are in the run's `config.json`."""
        arrays = {"states": states.replace(config=None), "totals": totals}
        optional = {"replays": replays, "normalizer": self.layout.place(self.parts.normalizer, mapped=False)}
        return arrays | {name: value for name, value in optional.items() if value is not None}

    def _restore(self) -> tuple[int, bool]:
        """Loads the newest checkpoint and takes log lines from after it out.

        Returns:
            Its step, and whether the evaluation due there was done.
        """
        plan, settings, step = self.parts.plan, self.parts.plan.settings, self.checkpoints.latest()
        if step is None:
            hosts.on_first(self._start_anew)
            return 0, True
        facts = self.checkpoints.facts()
        if facts["agent"] != settings.agent:
            raise UserError(
                f"the checkpoint in {plan.folder} is of agent {facts['agent']}, not {settings.agent} as its "
                "config.json says; put the right config.json back, or start a new run in another --run_dir"
            )
        replays, begun = None, facts.get("episodes")
        if begun is not None:
            replays = empty_replays(self.parts.facts.spec, settings.online, online_kind(self.parts), self.layout)
        like = devices.shapes(self._saved(self.states, self._totals, replays))
        del self.states, self._totals, replays  # there may be no memory for both
        found = self.checkpoints.restore(like)
        self.states, self._totals = found["states"].replace(config=self._configs), found["totals"]
        if begun is not None:  # the episodes that were under way are lost
            numbers = np.array(begun, np.int32) + 1
            self._collector = self._new_collector(step - settings.steps, numbers, found["replays"])
        schedule = self._schedule(settings.total if self._collector else settings.steps)
        tasks, steps = max(1, self.parts.facts.tasks), self.checkpoints.steps()
        reached = resuming.Reached(
            step, facts["evaluated"], (*self.parts.agent.evaluations(plan.config),), tasks, steps
        )
        hosts.on_first(partial(self._continue_logs, reached))
        print(f"resuming from {settings.unit} {step:,}")
        return step, facts["evaluated"] or not schedule.due(schedule.eval_interval, step)

    def _start_anew(self) -> None:
        """Lets a run that was killed before its first checkpoint begin again."""
        resuming.require_unbegun(self.parts.plan.folder)
        record_changes(self.parts.plan.folder, self.parts.plan.settings)

    def _continue_logs(self, reached: resuming.Reached) -> None:
        """Checks the logs up to the checkpoint and takes out what comes after it.

        Changes are recorded between the two: a kill then leaves logs that hold more than the recorded settings ask for,
        never less.
        """
        plan = self.parts.plan
        cuts = resuming.cuts(plan.folder, plan.settings, plan.runs, reached)
        record_changes(plan.folder, plan.settings)
        resuming.apply(cuts)

    def close(self) -> None:
        """Ends worker processes and threads."""
        if self._bar is not None:
            self._bar.close()
        if self._collector is not None:
            self._collector.environments.close()
        self._examiner.close()
        self.checkpoints.close()
        self._recorder.close()
