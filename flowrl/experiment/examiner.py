"""What a run's policies come to: episodes of evaluation, and videos of them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from flowrl.agent import Agent
from flowrl.experiment import videos
from flowrl.experiment.build import Parts
from flowrl.experiment.settings import Plan
from flowrl.machine import devices, hosts
from flowrl.machine.progress import Progress
from flowrl.machine.signals import Signals
from flowrl.random_streams import root_keys
from flowrl.run_folder.runs import Run
from flowrl.run_folder.summary import evaluation_lines
from flowrl.train_state import Policy
from flowrl.training.acting import by_itself
from flowrl.training.compiled import Program, States
from flowrl.training.evaluation import Evaluator


class _BrokenOff(Exception):
    """Breaks off an evaluation because the run is to stop."""


def evaluator_of(agent: Agent[Any], plan: Plan, tasks: int, runs: Sequence[Run]) -> Evaluator:
    """Starts the environments in which runs of a plan are evaluated, each with episodes of its own seed.

    Args:
        agent: Whose policies they have.
        plan: The environment and how many episodes.
        tasks: Of its environment.
        runs: Those that are evaluated.
    """
    settings = plan.settings
    return Evaluator(
        agent,
        plan.env.factory(),
        root_keys(jnp.array([run.seed for run in runs], jnp.uint32)),
        tasks=tasks,
        episodes=settings.eval.episodes,
        workers=settings.workers,
        slots=plan.env.most,
    )


class Examiner:
    """Evaluates the runs, on each host its own; all hosts must ask for that together."""

    def __init__(self, parts: Parts, layout: devices.Layout, program: Program, signals: Signals):
        """Starts the environments, if episodes are asked for.

        Args:
            parts: What the training is put together from.
            layout: The devices of the runs.
            program: The compiled functions, of which one gives policies.
            signals: Break evaluations off.
        """
        self._parts, self._program, self._signals = parts, program, signals
        self._own = layout.own
        self._evaluator: Evaluator | None = None
        if parts.plan.settings.eval.episodes and self._own:
            own = [parts.plan.runs[run] for run in self._own]
            self._evaluator = evaluator_of(parts.agent, parts.plan, parts.facts.tasks, own)

    def lines(self, step: int, states: States) -> list[dict[str, Any]] | None:
        """Evaluates the runs of all hosts.

        Args:
            step: When that is.
            states: Of the runs.

        Returns:
            The lines of the log; None if a host is to stop.
        """
        variants = self._parts.agent.evaluations(states.config)
        policies = {name: self._policies(states, config) for name, config in variants.items()}
        found = hosts.gather(None if self._evaluator is None else self._outcomes(step, policies))
        if any(lines == [] for lines in found):
            return None
        return [line for own in found for line in own or ()]

    def _policies(self, states: States, config: Any) -> Policy[Any]:
        """Returns the policies of this host's runs, on one device; all hosts must ask for them together."""
        policies = devices.local(self._program.policies(states.replace(config=config)))
        policies = jax.tree.map(lambda x: jnp.asarray(x[: len(self._own)]), policies)
        return policies.replace(normalizer=self._parts.normalizer)

    def _outcomes(self, step: int, policies: dict[str, Policy[Any]]) -> list[dict[str, Any]]:
        """Evaluates the runs of this host, and returns the lines of their log; none if the run is to stop."""
        assert self._evaluator is not None
        plan, own = self._parts.plan, self._own
        each = len(own) * max(1, self._parts.facts.tasks) * plan.settings.eval.episodes
        lines: list[dict[str, Any]] = []
        bar = Progress("evaluating", "episode", each * len(policies), hidden=hosts.no_bars(), leave=False)
        try:
            for i, (name, acting) in enumerate(policies.items()):
                outcome = self._evaluator(acting, partial(self._on_step, bar, i * each))
                runs = plan.runs[own.start : own.stop]
                lines += evaluation_lines(step, runs, name, outcome, plan.env.score, first_run=own.start)
        except _BrokenOff:
            return []
        finally:
            bar.close()
        return lines

    def _on_step(self, bar: Progress, before: int, done: int, _: int) -> None:
        """Shows how many episodes are over, and breaks off where the run is to stop."""
        bar.to(before + done)
        if self._signals.received is not None:
            raise _BrokenOff

    def film(self, states: States) -> bool:
        """Makes the videos that were asked for, on the first host; where nothing can be drawn it says so.

        Returns:
            False if it was broken off because the run is to stop.
        """
        plan, settings = self._parts.plan, self._parts.plan.settings
        episodes = settings.log.video_episodes
        if not episodes:
            return True
        policies = self._policies(states, by_itself(self._parts.agent, states.config))
        if self._evaluator is None or not hosts.first():
            return True
        asked = {"step": settings.total, "unit": settings.unit, **plan.runs[0].labels, "episodes": episodes}
        total = max(1, self._parts.facts.tasks) * episodes
        with Progress("filming", "episode", total, hidden=hosts.no_bars(), leave=False) as bar:
            on_step = partial(self._on_step, bar, 0)
            try:
                videos.record(plan.folder, plan.env, asked, self._evaluator, policies, on_step)
            except videos.NotDrawn as error:
                tqdm.write(f"warning: {error}")
            except _BrokenOff:
                return False
        return True

    def close(self) -> None:
        """Ends the environments and their processes."""
        if self._evaluator is not None:
            self._evaluator.close()
