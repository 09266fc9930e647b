"""What mirror descent's weights depend on, state or action: python experiments/mirror_weights.py --run_dir=DIR.

For a run of fpmd_r, fpmd_m or dpmd: in states of its replay buffer several actions are drawn as in training (the best
of some particles, with noise), and norm(Q) of the weights exp(clip(norm(Q))/α) is split into what varies between states
and what varies between the actions of one state. Only the latter prefers one action to another, where the clip lets it.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import envs, flags, loggers, mirror_descent
from flowrl.checkpoint import Checkpoints
from flowrl.config import setting
from flowrl.errors import UserError
from flowrl.losses import temperature
from flowrl.parts import build_agent
from flowrl.programs import load_states, stored_plan
from flowrl.provenance import git_commit, hardware
from flowrl.streams import root_keys
from flowrl.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to look at."""

    run_dir: str | None = setting(None, "Folder of the run.")
    states: int = setting(512, "States drawn from the replay buffer.")
    actions: int = setting(64, "Actions drawn in each.")
    out: str | None = setting(None, "JSON file for the numbers; <run_dir>/mirror_weights.json if absent.")


def spread(standard: jax.Array, alpha: jax.Array, clip: jax.Array) -> dict[str, jax.Array]:
    """Splits the spread of norm(Q) and of the weights.

    Args:
        standard: norm(Q), not clipped `[N, S]` of N actions in each of S states.
        alpha: Temperature α `[]`.
        clip: Bound of norm(Q) in the weights `[]`.

    Returns:
        Scalars: the deviation of norm(Q) between states, that between actions of a state, and the second over the
        first; the share of actions where the clip holds; of the weights, the median over states of the ratio of the
        largest to the smallest of a state's actions, and that between the 95th and the 5th percentile of all states'
        means.
    """
    centres, clipped = standard.mean(axis=0), jnp.clip(standard, -clip, clip)
    ends = jnp.percentile(clipped.mean(axis=0), jnp.array([95.0, 5.0]))
    between = {"states": centres.std(), "actions": standard.std(axis=0).mean()}
    return {
        "deviation_between_states": between["states"],
        "deviation_between_actions": between["actions"],
        "deviation_ratio": between["actions"] / between["states"],
        "clipped": jnp.mean(jnp.abs(standard) >= clip),
        "weight_ratio_of_actions": jnp.median(jnp.exp((clipped.max(axis=0) - clipped.min(axis=0)) / alpha)),
        "weight_ratio_of_states": jnp.exp((ends[0] - ends[1]) / alpha),
    }


def measure(agent: Any, config: Any, state: TrainState, observations: jax.Array, count: int) -> dict[str, float]:
    """Returns `spread` of the policy that one run trains in states `[S, D]`, and its temperature."""
    policy, goals = agent.policy(state) | {"actor": state.params["actor"]}, jnp.zeros((len(observations), 0))
    keys = jax.random.split(jax.random.key(0), count)
    actions = jax.vmap(lambda key: agent.act(policy, observations, goals, key, mode="explore"))(keys)
    critic = partial(mirror_descent.critic_network(config).apply, state.params["critic"], observations)
    values = jax.vmap(lambda each: critic(each).min(axis=0))(actions)
    alpha = temperature(state.params)
    found = spread(mirror_descent.standardized(config, state, values), alpha, state.hyper["q_clip"])
    return {name: float(x) for name, x in (found | {"temperature": alpha}).items()}


def stored_observations(folder: Path, run: int, count: int) -> jax.Array:
    """Returns observations of one run's buffer, evenly spaced over what it holds `[count, D]`.

    Raises:
        UserError: The newest checkpoint is from before the run gathered experience.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    arrays = checkpoints.raw()
    checkpoints.close()
    if len(arrays) < 3:
        raise UserError(f"the newest checkpoint in {folder} is from before the first environment step; train on")
    replays = arrays[2]
    rows = np.linspace(0, int(replays["size"][run]) - 1, count).astype(int)
    return jnp.asarray(np.asarray(replays["fields"]["observations"])[run, rows])


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    given = flags.read(Settings, arguments, __doc__ or "")
    if given is None:
        return 0
    plan, stored = stored_plan(given.run_dir)
    if not isinstance(plan.agent_config, mirror_descent.Config) or not plan.settings.online_steps:
        raise UserError(f"{given.run_dir} is no online run of fpmd_r, fpmd_m or dpmd")
    for name in ("states", "actions"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name}={getattr(given, name)} is too small; the least is 1")
    keys = root_keys(jnp.array(plan.seeds, jnp.uint32))
    agent = build_agent(plan, envs.sizes(plan.env), None)
    step, states = load_states(plan.folder, agent, keys)
    per_seed = {}
    for run, seed in enumerate(plan.seeds):
        state = jax.tree.map(lambda x, run=run: x[run], states.replace(step=None))
        observations = stored_observations(plan.folder, run, given.states)
        per_seed[str(seed)] = measure(agent, plan.agent_config, state, observations, given.actions)
    means = {name: float(np.mean([each[name] for each in per_seed.values()])) for name in per_seed[str(plan.seeds[0])]}
    out = Path(given.out) if given.out else plan.folder / "mirror_weights.json"
    report = {
        "command": f"python experiments/mirror_weights.py --states={given.states} --actions={given.actions}",
        "run": stored["command"],
        "run_git_commit": stored["git_commit"],
        "git_commit": git_commit(),
        "hardware": hardware(),
        "step": step,
        "mean": means,
        "per_seed": per_seed,
    }
    loggers.write_json(out, report)
    print({name: round(value, 4) for name, value in means.items()})
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    flags.run(main)
