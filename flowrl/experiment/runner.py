"""A training run at work: its states on the devices, its environments, and what it does between chunks of training."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flowrl import config as configs
from flowrl.data.replay import Replay
from flowrl.errors import UserError
from flowrl.experiment import resuming, videos
from flowrl.experiment.banner import record_changes
from flowrl.experiment.build import Parts, build_program, online_kind
from flowrl.experiment.recorder import Recorder, estimate
from flowrl.machine import devices, hosts, progress
from flowrl.machine.files import CHECKPOINTS
from flowrl.machine.progress import Progress
from flowrl.machine.signals import Signals, saving, within
from flowrl.random_streams import root_keys
from flowrl.run_folder.summary import evaluation_lines
from flowrl.train_state import Policy
from flowrl.training import loop
from flowrl.training.acting import by_itself
from flowrl.training.checkpoint import Checkpoints
from flowrl.training.compiled import States
from flowrl.training.evaluation import Evaluator
from flowrl.training.online import Collector, Environments, empty_replays
from flowrl.training.step import Window


class _BrokenOff(Exception):
    """Breaks off an evaluation because the run is to stop."""


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
        self._keys = layout.keys([trial.seed for trial in plan.trials])
        self._program = build_program(parts, layout)
        stacked = configs.stacked(plan.config, [trial.values for trial in plan.trials])
        self._configs = layout.place(jax.tree.map(layout.filled, stacked), mapped=True)
        self.states, self._window = self._program.start(self._keys, self._configs)
        self.checkpoints = Checkpoints(plan.folder / CHECKPOINTS, settings.checkpoint.keep)
        self._own, self._evaluations = layout.own, agent.evaluations(plan.config)
        self._recorder = Recorder(plan, self._own, self._evaluations)
        self._evaluator: Evaluator | None = None
        if settings.eval.episodes and self._own:
            self._evaluator = Evaluator(
                agent,
                plan.env.factory(),
                root_keys(jnp.array([plan.trials[run].seed for run in self._own], jnp.uint32)),
                tasks=parts.facts.tasks,
                episodes=settings.eval.episodes,
                workers=settings.workers,
                slots=plan.env.most,
            )
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
        self._recorder.diverging(loop.divergences(self._window))
        if self.checkpoints.latest() is None:
            self._checkpoint(0, self.states, self._window, True)
        if self._stopping():
            raise loop.Stopped  # before the program is compiled
        self._bar = Progress("training", settings.unit, settings.total, step, hidden=hosts.no_bars())
        states, window = self.states, self._window
        del self.states, self._window  # the loop gives them away
        if self._collector is None and settings.steps and (step < settings.steps or not evaluated):
            states, window = self._train_offline(states, window, step, evaluated)
            step, evaluated = settings.steps, True
        if settings.online.steps and (step < settings.total or not evaluated):
            states, window = self._train_online(states, window, step, evaluated)
        self._bar.close()
        self._recorder.summarize()
        if not all(hosts.gather(self._film(states))):
            raise loop.Stopped
        self._recorder.close()
        hosts.wait()  # which may take the first long, for the network

    def _train_offline(self, states: States, window: Window, step: int, evaluated: bool) -> tuple[States, Window]:
        dataset = self.parts.dataset
        chunk = self._compiled(states, window, self._keys, dataset, np.int32(1))

        def advance(states: States, window: Window, steps: int) -> tuple[States, Window]:
            trained: tuple[States, Window] = chunk(states, window, self._keys, dataset, np.int32(steps))
            return trained

        schedule = self._schedule(self.parts.plan.settings.steps)
        with self._patient():
            return loop.train(advance, schedule, self._hooks(schedule), states, window, step=step, evaluated=evaluated)

    def _train_online(self, states: States, window: Window, step: int, evaluated: bool) -> tuple[States, Window]:
        if self._collector is None:
            self._collector, window = self._new_collector(), loop.clear(window)
        collector, settings = self._collector, self.parts.plan.settings
        arguments = (states, window, self._keys, self.parts.dataset, np.int32(1), collector.replays)
        collector.program = self._program._replace(chunk=self._compiled(*arguments))
        schedule, unit = self._schedule(settings.total), settings.online.num_envs
        self._announced = False
        hooks = self._hooks(schedule)
        start = (states, window)
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
        gathered = self._collector.environments.drain() if self._collector else [{} for _ in self._own]
        self._recorder.log(step, metrics, gathered)

    def _progress(self, schedule: loop.Schedule, step: int, steps: int, seconds: float) -> None:
        self._recorder.trained(steps, seconds)
        runs, unit = len(self.parts.plan.trials), self.parts.plan.settings.unit
        if self._bar is not None:
            self._bar.to(step, f"{runs * steps / seconds:,.0f} run-{unit}s/s" if runs > 1 else "")
        if self._collector is not None and self._collector.warm:
            self._warm_chunks += 1  # in the first, acting is still being compiled
        if not self._announced and (self._collector is None or self._warm_chunks > 1):
            self._announced = True
            counted = "updates" if self._collector is None else "steps"
            tqdm.write(estimate(steps / seconds, runs, schedule.steps - step, counted))

    # ----------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, step: int, states: States) -> bool:
        """Evaluates the runs of all hosts and logs that; false if one of them is to stop."""
        if not self.parts.plan.settings.eval.episodes:
            return True
        variants = self.parts.agent.evaluations(states.config)
        policies = {name: self._policies(states, config) for name, config in variants.items()}
        found = hosts.gather(None if self._evaluator is None else self._outcomes(step, policies))
        if any(lines == [] for lines in found):
            return False
        self._recorder.evaluated(step, [line for own in found for line in own or ()])
        return True

    def _policies(self, states: States, config: Any) -> Policy[Any]:
        """Returns the policies of this host's runs, on one device; all hosts must ask for them together."""
        policies = devices.local(self._program.policies(states.replace(config=config)))
        policies = jax.tree.map(lambda x: jnp.asarray(x[: len(self._own)]), policies)
        return policies.replace(normalizer=self.parts.normalizer)

    def _outcomes(self, step: int, policies: dict[str, Policy[Any]]) -> list[dict[str, Any]]:
        """Evaluates the runs of this host, and returns the lines of their log; none if the run is to stop."""
        assert self._evaluator is not None
        plan, own = self.parts.plan, self._own
        each = len(own) * max(1, self.parts.facts.tasks) * plan.settings.eval.episodes
        bar = Progress("evaluating", "episode", each * len(policies), hidden=hosts.no_bars(), leave=False)

        def on_step(before: int, done: int, _: int) -> None:
            bar.to(before + done)
            if self._signals.received is not None:
                raise _BrokenOff

        lines: list[dict[str, Any]] = []
        try:
            for i, (name, acting) in enumerate(policies.items()):
                outcome = self._evaluator(acting, partial(on_step, i * each))
                trials = plan.trials[own.start : own.stop]
                lines += evaluation_lines(step, trials, name, outcome, plan.env.score, first_run=own.start)
        except _BrokenOff:
            return []
        finally:
            bar.close()
        return lines

    def _film(self, states: States) -> bool:
        """Makes the videos that were asked for, on the first host; where nothing can be drawn it says so.

        Returns:
            False if it was broken off because the run is to stop.
        """
        plan, settings = self.parts.plan, self.parts.plan.settings
        episodes = settings.log.video_episodes
        if not episodes:
            return True
        policies = self._policies(states, by_itself(self.parts.agent, states.config))
        if self._evaluator is None or not hosts.first():
            return True
        asked = {"step": settings.total, "unit": settings.unit, **plan.trials[0].labels, "episodes": episodes}
        total = max(1, self.parts.facts.tasks) * episodes
        with Progress("filming", "episode", total, hidden=hosts.no_bars(), leave=False) as bar:

            def on_step(done: int, _: int) -> None:
                bar.to(done)
                if self._signals.received is not None:
                    raise _BrokenOff

            try:
                videos.record(plan.folder, plan.env, asked, self._evaluator, policies, on_step)
            except videos.NotDrawn as error:
                tqdm.write(f"warning: {error}")
            except _BrokenOff:
                return False
        return True

    # ---------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self, step: int, states: States, window: Window, evaluated: bool) -> None:
        facts: dict[str, Any] = {"agent": self.parts.plan.settings.agent, "evaluated": evaluated}
        replays = None
        if self._collector is not None:
            facts["episodes"] = self._collector.environments.episodes.tolist()
            replays = self._collector.replays
        with within(None):
            self.checkpoints.save(step, self._saved(states, window, replays), facts)

    def _saved(self, states: States, window: Window, replays: Replay | None) -> dict[str, Any]:
        """Returns what a checkpoint holds; configurations are in the run's `config.json`."""
        arrays = {"states": states.replace(config=None), "window": window}
        optional = {"replays": replays, "normalizer": self.layout.place(self.parts.normalizer, mapped=False)}
        return arrays | {name: value for name, value in optional.items() if value is not None}

    def _restore(self) -> tuple[int, bool]:
        """Loads the newest checkpoint and takes log lines from after it out.

        Returns:
            Its step, and whether the evaluation due there was done.
        """
        plan, settings, step = self.parts.plan, self.parts.plan.settings, self.checkpoints.latest()
        if step is None:
            hosts.agreed(lambda: self._start_anew() if hosts.first() else None)
            return 0, True
        facts = self.checkpoints.facts()
        if facts["agent"] != settings.agent:
            raise UserError(
                f"the checkpoint in {plan.folder} is of agent {facts['agent']}, not {settings.agent} as its "
                "config.json says; put the right config.json back, or start a new run in another --run_dir"
            )
        replays, begun = None, facts.get("episodes")
        if begun is not None:
            shape = (self.parts.facts.spec, settings.online.capacity, online_kind(self.parts), self.layout)
            replays = empty_replays(*shape)
        like = devices.shapes(self._saved(self.states, self._window, replays))
        del self.states, self._window, replays  # there may be no memory for both
        found = self.checkpoints.restore(like)
        self.states, self._window = found["states"].replace(config=self._configs), found["window"]
        if begun is not None:  # the episodes that were under way are lost
            numbers = np.array(begun, np.int32) + 1
            self._collector = self._new_collector(step - settings.steps, numbers, found["replays"])
        schedule = self._schedule(settings.total if self._collector else settings.steps)
        tasks, steps = max(1, self.parts.facts.tasks), self.checkpoints.steps()
        reached = resuming.Reached(step, facts["evaluated"], (*self._evaluations,), tasks, steps)
        hosts.agreed(lambda: self._continue_logs(reached) if hosts.first() else None)
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
        cuts = resuming.cuts(plan.folder, plan.settings, plan.trials, reached)
        record_changes(plan.folder, plan.settings)
        resuming.apply(cuts)

    def close(self) -> None:
        """Ends worker processes and threads."""
        if self._bar is not None:
            self._bar.close()
        if self._collector is not None:
            self._collector.environments.close()
        if self._evaluator is not None:
            self._evaluator.close()
        self.checkpoints.close()
        self._recorder.close()
