"""What a run says of itself: its `config.json`, what changed when it is resumed, and the lines at its beginning."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from flowrl import hosts, loggers
from flowrl.data import sources
from flowrl.provenance import git_commit, hardware, versions
from flowrl.settings import OUTPUTS, Plan, command, read_config
from flowrl.train_state import TrainState


def describe(plan: Plan, source: sources.Source) -> dict[str, Any]:
    """Returns the `config.json` of a run, by which it is told apart, repeated and continued."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ogbench", "mujoco", "gymnasium")
    settings = dataclasses.asdict(plan.settings) | {"resume": False, "run_dir": None}
    config: dict[str, Any] = {
        "settings": settings,
        "agent_config": dataclasses.asdict(plan.agent_config),
        "seeds": plan.seeds,
        "preset": {"name": plan.preset.name, "source": plan.preset.source},
        "data": source._asdict() | {"path": "none" if source is sources.NONE else str(source.path.resolve())},
        "hardware": hardware(),
        "devices": jax.device_count(),
        "hosts": hosts.count(),
        "versions": versions(*packages),
        "git_commit": git_commit(),
    }
    if plan.grid:
        config["grid"] = [trial.labels for trial in plan.grid]
    return {"command": command(config)} | config


def record_changes(plan: Plan) -> None:
    """Writes what a resumed run does otherwise from now on into its `config.json`."""
    config = read_config(plan.folder)
    changed = {name: getattr(plan.settings, name) for name in ("steps", "keep_checkpoints", *OUTPUTS)}
    if config["settings"] | changed != config["settings"]:
        config["settings"] |= changed
        loggers.write_json(plan.folder / "config.json", config)


def warn_of_changes(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Says what differs from when the run began: resuming is exact on the same machine, commit and versions only."""
    for name in ("versions", "git_commit", "hardware", "devices", "hosts"):
        if stored.get(name) != now[name]:
            print(f"note: {name} differ from the run's first part: {stored.get(name)} then, {now[name]} now")


def print_banner(
    plan: Plan,
    source: sources.Source,
    states: TrainState,
    used: int,
    facts: Sequence[str] = (),
    doubts: Sequence[str] = (),
) -> None:
    """Says what begins, with these states on so many devices, and what the data consist of and leave in doubt."""
    settings, runs = plan.settings, len(plan.trials)
    spread = f"{used} × " if used > 1 else ""
    spread_over = f", {hosts.count()} hosts" if hosts.count() > 1 else ""
    parameters = sum(leaf.size // len(leaf) for leaf in jax.tree.leaves(states.params))
    mapped = f" × {runs} runs ({settings.map})" if runs > 1 else ""
    rows: dict[str, str | Sequence[str]] = {
        "agent": f"{settings.agent}, {parameters:,} parameters{mapped}",
        "environment": "; ".join(filter(None, (plan.env.env_id or "none: training only", plan.env.note))),
        "data": (source.detail, *facts),
        "note": doubts,
        "preset": plan.preset.source,
        "training": f"{_amount(plan)}, batches of {plan.agent_config.batch_size} transitions, {_seeds(plan.seeds)}",
        "sweep": ", ".join(plan.trials[0].swept) if plan.grid else "",
        "device": f"{spread}{jax.devices()[0].device_kind} ({jax.default_backend()}){spread_over}, {hardware()}",
        "run": str(plan.folder),
    }
    for name, found in rows.items():
        for i, text in enumerate((found,) if isinstance(found, str) else found):
            if text:
                print(f"{name if name == 'note' or not i else '':>12}  {text}")


def _seeds(seeds: list[int]) -> str:
    """Returns the seeds, which are numbers that follow one another, in words."""
    return f"seeds {seeds}" if len(seeds) <= 10 else f"{len(seeds):,} seeds from {seeds[0]} to {seeds[-1]}"


def _amount(plan: Plan) -> str:
    """Returns how much is trained, in words."""
    settings: Any = plan.settings
    parts = [f"{settings.steps:,} updates"] if settings.steps else []
    if settings.online_steps:
        rate = f"{settings.updates_per_step:g} updates each, {settings.num_envs} at a time"
        parts.append(f"{settings.online_steps:,} environment steps with {rate}")
    return ", then ".join(parts)
