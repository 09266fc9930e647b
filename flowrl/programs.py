"""For programs beside experiments/main.py: train with it, passing flags on, and load what a run has learnt."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
from absl import flags as absl_flags

from flowrl import agent as agents
from flowrl import flags, run_files, schema
from flowrl.agent import Agent
from flowrl.config import check
from flowrl.errors import UserError
from flowrl.machine.files import CHECKPOINTS, CONFIG, SUMMARY
from flowrl.machine.signals import run_program
from flowrl.random_streams import root_keys
from flowrl.settings import Plan, Settings, points, read_plan
from flowrl.train_state import TrainState


def agent_name(arguments: Sequence[str], read: Callable[[Path], dict[str, Any]]) -> str | None:
    """Returns the agent whose flags are to be defined: the one named, or that of the folder to resume.

    Args:
        arguments: The command line, the program first.
        read: Returns what such a folder records of itself.
    """
    values = absl_flags.FlagValues()
    flags.define(values, Settings)
    flags.parse(values, arguments, known_only=True)
    if values.agent is None and values.resume and values.run_dir:
        return read(Path(values.run_dir).expanduser())["settings"]["agent"]
    return values.agent


def help_text(description: str, arguments: Sequence[str], tables: Mapping[str, type]) -> str:
    """Returns the help of a program that trains: its flags, and those of the agent that the command line names.

    Args:
        description: What it is for.
        arguments: The command line, the program first.
        tables: Dataclasses of flags under their headings; the first needs none.

    Raises:
        UserError: There is no such agent.
    """
    parts = [f"{description}\nagents: {', '.join(agents.names())}"]
    parts += [f"{heading and f'{heading}:'}\n{flags.help_text(table)}".strip("\n") for heading, table in tables.items()]
    if name := _named(arguments):
        parts.append(f"{name}:\n{flags.help_text(agents.load(name).Config, 'agent.')}")
    return "\n\n".join(parts)


def _named(arguments: Sequence[str]) -> str | None:
    """Returns what a command line, however wrong the rest of it is, gives as --agent."""
    for argument, following in zip(arguments[1:], [*arguments[2:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "agent":
            return value or following
    return None


def own_and_other(
    settings: type, arguments: Sequence[str], description: str, fixed: Sequence[str] = ()
) -> tuple[Any, list[str]] | None:
    """Splits a command line into a program's own settings and flags for the training.

    Args:
        settings: Dataclass of the program's own flags.
        arguments: The command line, the program first.
        description: For `--help`.
        fixed: Names of flags of the training that the program sets itself.

    Returns:
        The settings and the other flags; None where help was asked for and printed.

    Raises:
        UserError: A flag is malformed, or fixed.
    """
    if flags.informed(arguments, lambda: f"{description}\n{flags.help_text(settings)}"):
        return None
    values = absl_flags.FlagValues()
    flags.define(values, settings)
    others = flags.parse(values, arguments, known_only=True)
    if wrong := [flag for flag in others if not re.fullmatch(r"--?[\w.]+=.*", flag)]:
        raise UserError(f"{wrong[0]!r} cannot be passed on; write --name=value")
    for flag in others:
        if (name := flag.lstrip("-").split("=")[0]) in fixed:
            raise UserError(f"--{name} is set by this program; leave it out")
    own = settings(**flags.given(values, settings))
    check(own)
    return own, list(others)


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
        schema.read(folder / SUMMARY, run_files.SUMMARY)
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


def load_states(plan: Plan, agent: Agent, step: int | None = None) -> tuple[int, TrainState]:
    """Returns the step of a run's newest checkpoint, or of the one that is asked for, and its states for acting.

    Args:
        plan: Of the run.
        agent: As it was trained, or with settings that only acting reads changed.
        step: Of which checkpoint.

    Returns:
        The step, and the states `[R, ...]` of its runs without the optimizer's.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or it is of another agent.
    """
    from flowrl.checkpoint import Checkpoints  # here, so that a program's --help needs no orbax

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
    like = jax.eval_shape(jax.vmap(agent.init), root_keys(jnp.zeros(runs, jnp.uint32))).replace(opt_state=())
    like = like.replace(step=jax.ShapeDtypeStruct((), like.step.dtype))  # which runs share
    stored = {**checkpoints.raw(step)[0], "opt_state": ()}
    try:
        states = flax.serialization.from_state_dict(like, stored)
    except (ValueError, KeyError) as error:
        raise checkpoints.unfit(step, str(error)) from error
    checkpoints.require_fit(like, states, step)
    if (rows := min(len(leaf) for leaf in jax.tree.leaves(states) if leaf.ndim)) < runs:
        raise checkpoints.unfit(step, f"it has {rows} runs, not {runs}")
    checkpoints.close()
    # More rows than runs were stored, where these did not fill their devices evenly.
    return step, jax.tree.map(lambda x: x[:runs] if x.ndim else x, states)
