"""For programs beside experiments/main.py: train with it, passing flags on, and load what a run has learnt."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import flax.serialization
import jax
import jax.numpy as jnp
from absl import flags as absl_flags

from flowrl import agents
from flowrl.agent import Agent
from flowrl.cli import flags
from flowrl.config import stacked
from flowrl.errors import UserError
from flowrl.experiment.settings import Plan, Settings
from flowrl.experiment.stored import read_plan
from flowrl.machine import schema
from flowrl.machine.files import CHECKPOINTS, CONFIG, SUMMARY
from flowrl.machine.signals import run_program
from flowrl.normalize import Normalizer
from flowrl.random_streams import root_keys
from flowrl.run_folder import formats
from flowrl.run_folder.trials import points
from flowrl.train_state import TrainState

T = TypeVar("T")


def given(
    arguments: Sequence[str], records: Sequence[Any], read: Callable[[Path], dict[str, Any]], *, several: bool = False
) -> list[dict[str, Any]]:
    """Reads the command line of a program that trains.

    Args:
        arguments: The command line, the program first.
        records: Its settings.
        read: Returns what a folder to resume records of itself, whose agent is meant where none is named.
        several: Whether each setting of the agent may have several values.

    Returns:
        What is given of each record, and last of the agent's settings, by dotted name.

    Raises:
        UserError: A flag is unknown or has a bad value.
    """
    values = absl_flags.FlagValues()
    for record in records:
        flags.define(values, record)
    name = _agent_name(arguments, read)
    usual = agents.default(name) if name else None
    if usual is not None:
        (flags.define_lists if several else flags.define)(values, usual, "agent.")
    flags.parse(values, arguments, known_only=usual is None)  # without an agent its flags are not known yet
    found = [flags.given(values, record) for record in records]
    if usual is None:
        return [*found, {}]
    return [*found, (flags.given_lists if several else flags.given)(values, usual, "agent.")]


def _agent_name(arguments: Sequence[str], read: Callable[[Path], dict[str, Any]]) -> str | None:
    """Returns the agent whose flags are to be defined: the one named, or that of the folder to resume."""
    values = absl_flags.FlagValues()
    flags.define(values, Settings())
    flags.parse(values, arguments, known_only=True)
    if values.agent is None and values.resume and values.run_dir:
        return str(read(Path(values.run_dir).expanduser())["settings"]["agent"])
    return None if values.agent is None else str(values.agent)


def help_text(description: str, arguments: Sequence[str], tables: Mapping[str, Any]) -> str:
    """Returns the help of a program that trains: its flags, and those of the agent that the command line names.

    Args:
        description: What it is for.
        arguments: The command line, the program first.
        tables: Records of settings under their headings; the first needs none.

    Raises:
        UserError: There is no such agent.
    """
    parts = [f"{description}\nagents: {', '.join(agents.names())}"]
    parts += [f"{heading and f'{heading}:'}\n{flags.help_text(table)}".strip("\n") for heading, table in tables.items()]
    if name := _named(arguments):
        parts.append(f"{name}:\n{flags.help_text(agents.default(name), 'agent.')}")
    return "\n\n".join(parts)


def _named(arguments: Sequence[str]) -> str | None:
    """Returns what a command line, however wrong the rest of it is, gives as --agent."""
    for argument, following in zip(arguments[1:], [*arguments[2:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "agent":
            return value or following
    return None


def own_and_other(
    settings: T, arguments: Sequence[str], description: str, fixed: Sequence[str] = ()
) -> tuple[T, list[str]] | None:
    """Splits a command line into a program's own settings and flags for the training.

    Args:
        settings: The program's own settings by default.
        arguments: The command line, the program first.
        description: For `--help`.
        fixed: Names of flags of the training that the program sets itself.

    Returns:
        The settings and the other flags; None where help was asked for and printed.

    Raises:
        UserError: A flag is malformed, or fixed.
    """
    found = flags.read_with_rest(settings, arguments, description, known_only=True)
    if found is None:
        return None
    own, others = found
    if wrong := [flag for flag in others if not re.fullmatch(r"--?[\w.]+=.*", flag)]:
        raise UserError(f"{wrong[0]!r} cannot be passed on; write --name=value")
    for flag in others:
        if (name := flag.lstrip("-").split("=")[0]) in fixed:
            raise UserError(f"--{name} is set by this program; leave it out")
    return own, others


def train(main: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Trains to the end, from the newest checkpoint where there is one; a finished run is left as it is.

    Args:
        main: experiments/main.py.
        folder: Of the run.
        arguments: Flags of the training.

    Raises:
        UserError: The run failed or was stopped.
    """
    if (folder / SUMMARY).exists():
        schema.read(folder / SUMMARY, formats.SUMMARY)
        return
    resume = ["--resume"] if (folder / CONFIG).exists() else []
    if status := run_program([sys.executable, str(main), *arguments, f"--run_dir={folder}", *resume]):
        raise UserError(f"the training in {folder} ended with status {status}; the same command continues")


def stored_plan(run_dir: str | None) -> tuple[Plan, dict[str, Any]]:
    """Returns the plan and the `config.json` of the run that a program is given, or of its seeds.

    Raises:
        UserError: None is given, the folder holds no run, or its runs are a part of a sweep with several values.
    """
    if run_dir is None:
        raise UserError("which run? give --run_dir=DIR")
    plan, stored = read_plan(Path(run_dir).expanduser())
    if len(points(plan.trials)) > 1:
        raise UserError(
            f"the runs in {plan.folder} differ in {', '.join(plan.trials[0].swept)}; give the directory of one "
            "configuration"
        )
    return plan, stored


def load_states(
    plan: Plan, agent: Agent[Any], step: int | None = None
) -> tuple[int, TrainState[Any], Normalizer | None]:
    """Returns the step of a run's newest checkpoint, or of the one that is asked for, and what acts of it.

    Args:
        plan: Of the run.
        agent: As it was trained, or with settings that only acting reads changed, as the plan has them.
        step: Of which checkpoint.

    Returns:
        The step, the states `[R, ...]` of its runs without the optimizer's, and what stands between environment and
        agent, if anything does.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or it is of another agent.
    """
    from flowrl.training.checkpoint import Checkpoints  # here, so that a program's --help needs no orbax

    folder = plan.folder / CHECKPOINTS
    checkpoints = Checkpoints(folder, read_only=True) if folder.exists() else None
    kept = checkpoints.steps() if checkpoints else []
    if checkpoints is None or not kept:
        raise UserError(f"{plan.folder} has no checkpoint; put its folder {CHECKPOINTS} back, or train it")
    if step is not None and step not in kept:
        raise UserError(f"{folder} has no checkpoint at step {step}; give --step={' or '.join(map(str, kept))}")
    step = kept[-1] if step is None else step
    trained, runs = checkpoints.facts(step)["agent"], len(plan.trials)
    if trained != plan.settings.agent:
        raise UserError(f"the checkpoint in {folder} is of agent {trained}, not {plan.settings.agent} as its run says")
    config = stacked(plan.config, [trial.values for trial in plan.trials])
    like = jax.eval_shape(jax.vmap(agent.init), root_keys(jnp.zeros(runs, jnp.uint32)), config)
    like = like.replace(opt_state=(), config=None)
    like = like.replace(step=jax.ShapeDtypeStruct((), like.step.dtype))  # which runs share
    try:
        arrays = checkpoints.raw(step)
        states = flax.serialization.from_state_dict(like, {**arrays["states"], "opt_state": (), "config": None})
    except (ValueError, KeyError, TypeError) as error:
        raise checkpoints.unfit(step, str(error)) from error
    checkpoints.require_fit(like, states, step)
    if (rows := min(len(leaf) for leaf in jax.tree.leaves(states) if leaf.ndim)) < runs:
        raise checkpoints.unfit(step, f"it has {rows} runs, not {runs}")
    checkpoints.close()
    # More rows than runs were stored, where these did not fill their devices evenly.
    states = jax.tree.map(lambda x: x[:runs] if x.ndim else x, states).replace(config=config)
    found = arrays.get("normalizer")
    normalizer = found and Normalizer(**found, goals_are_states=plan.env.goals == "state")
    return step, states, normalizer
