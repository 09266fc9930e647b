"""What a run says of itself: its `config.json`, what changed when it is resumed, and the lines at its beginning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from flowrl import config as configs
from flowrl.experiment.settings import Plan, Settings
from flowrl.experiment.stored import command, read_config
from flowrl.machine import hosts
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.run_folder import logs
from flowrl.run_folder.layout import CONFIG
from flowrl.run_folder.runs import seeds
from flowrl.tasks import sources
from flowrl.train_state import TrainState


def describe(plan: Plan, data: sources.Source, task: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `config.json` of runs, by which they are told apart, repeated and continued.

    Args:
        plan: The runs.
        data: What is learnt from.
        task: What a policy must know of its environment, as `Task.told` gives it.
    """
    settings = plan.settings
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ogbench", "mujoco", "gymnasium")
    told: dict[str, Any] = {
        "settings": configs.values(settings) | {"resume": False, "run_dir": ""},
        "agent_config": configs.values(plan.config),
        "seeds": seeds(plan.runs),
        "preset": {"name": settings.preset, "source": plan.source},
        "data": data._asdict() | {"path": "none" if data is sources.NONE else str(data.path.resolve())},
        "task": dict(task),
        "hardware": hardware(),
        "devices": jax.device_count(),
        "hosts": hosts.count(),
        "versions": versions(*packages),
        "git_commit": git_commit(),
        "incidental": [entry.name for entry in configs.flatten(settings) if not entry.field.metadata["learning"]],
    }
    if plan.swept:
        told["grid"] = [run.labels for run in plan.runs]
    return {"command": command(told)} | told


def record_changes(folder: Path, settings: Settings) -> None:
    """Writes what a resumed run does otherwise from now on into its `config.json`."""
    told = read_config(folder)
    changed = {entry.name: entry.value for entry in configs.flatten(settings) if entry.field.metadata["resumable"]}
    changed |= {"resume": False, "run_dir": "", "data": told["settings"]["data"]}  # which is where it lies now
    if told["settings"] | changed != told["settings"]:
        told["settings"] |= changed
        logs.write_json(folder / CONFIG, told)


def warn_of_changes(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Says what differs from when the run began: resuming is exact on the same machine, commit and versions only."""
    for name in ("versions", "git_commit", "hardware", "devices", "hosts"):
        if stored.get(name) != now[name]:
            print(f"note: {name} differ from the run's first part: {stored.get(name)} then, {now[name]} now")


def print_banner(plan: Plan, states: TrainState[Any], rows: dict[str, str | Sequence[str]]) -> None:
    """Says what begins.

    Args:
        plan: The runs.
        states: Theirs.
        rows: Further lines, one or several, by what stands before them: `data`, `note`, `preset`, `device`, `run`.
    """
    settings, runs, env = plan.settings, plan.runs, plan.env
    parameters = sum(leaf.size // len(leaf) for leaf in jax.tree.leaves(states.params))
    mapped = f" × {len(runs)} runs ({settings.map})" if len(runs) > 1 else ""
    shown: dict[str, str | Sequence[str]] = {
        "agent": f"{settings.agent}, {parameters:,} parameters{mapped}",
        "environment": "; ".join(filter(None, (env.env_id or "none: training only", env.note))),
        "training": f"{_amount(settings)}, batches of {plan.config.batch_size} transitions, {_seeds(seeds(runs))}",
        "sweep": ", ".join(runs[0].swept),
        **rows,
    }
    for name, found in shown.items():
        for i, text in enumerate((found,) if isinstance(found, str) else found):
            if text:
                print(f"{name if name == 'note' or not i else '':>12}  {text}")


def device_text(used: int) -> str:
    """Returns what computes, with so many devices in use."""
    spread = f"{used} × " if used > 1 else ""
    spread_over = f", {hosts.count()} hosts" if hosts.count() > 1 else ""
    return f"{spread}{jax.devices()[0].device_kind} ({jax.default_backend()}){spread_over}, {hardware()}"


def _seeds(seeds: list[int]) -> str:
    """Returns the seeds, which are numbers that follow one another, in words."""
    return f"seeds {seeds}" if len(seeds) <= 10 else f"{len(seeds):,} seeds from {seeds[0]} to {seeds[-1]}"


def _amount(settings: Settings) -> str:
    """Returns how much is trained, in words."""
    online = settings.online
    parts = [f"{settings.steps:,} updates"] if settings.steps else []
    if online.steps:
        rate = f"{online.updates_per_step:g} updates each, {online.num_envs} at a time"
        parts.append(f"{online.steps:,} environment steps with {rate}")
    return ", then ".join(parts)
