"""Whether it matters that GC-SSCP's noises share a key: python experiments/shared_noise.py --run_dir=DIR.

In the authors' code the noise of the action and that of the representation are drawn from one key when acting, so that
the first entries of the second are the first. A trained run acts both ways in the same episodes, and many times over
where episodes begin, to see how much of an action is noise at all.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import envs, flags, loggers
from flowrl.agent import Agent
from flowrl.agents import gc_sscp
from flowrl.config import setting
from flowrl.errors import UserError
from flowrl.evaluate import Evaluator
from flowrl.networks import represent
from flowrl.parts import build_agent
from flowrl.programs import load_states, stored_plan
from flowrl.provenance import git_commit, hardware
from flowrl.settings import Plan
from flowrl.streams import root_keys


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to look at."""

    run_dir: str | None = setting(None, "Folder of a run of gc_sscp that acts in one hop.")
    eval_episodes: int = setting(20, "Episodes per task; 0 for none.")
    draws: int = setting(256, "Actions drawn in each state.")
    workers: int | None = setting(None, "Processes for environments; one per core if absent.")
    out: str | None = setting(None, "JSON file for the numbers; <run_dir>/shared_noise.json if absent.")


def shared(key: jax.Array, like: gc_sscp.Pair) -> gc_sscp.Pair:
    """Returns noise whose first entries of the representation are those of the action."""
    reps = jax.random.normal(key, like.reps.shape)
    return gc_sscp.Pair(reps[..., : like.actions.shape[-1]], reps)


def act(
    networks: Any, draw: Any, policy: Any, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Any
) -> jax.Array:
    """Acts in one hop from noise by `draw`."""
    del mode
    reps = represent(networks, policy, observations, goals)
    like = gc_sscp.Pair(jnp.zeros((*observations.shape[:-1], networks.actor.action_dim)), reps)
    return gc_sscp.bounded(networks.actor.apply(policy["actor"], observations, reps, draw(key, like), 0, 2)).actions


def spread(agent: Agent, policy: Any, observations: jax.Array, goals: jax.Array, draws: int) -> dict[str, Any]:
    """Returns the mean over states of the deviation of an action's coordinates over noise, and each state's mean."""
    keys = jax.random.split(jax.random.key(0), draws)
    actions = jax.vmap(lambda key: agent.act(policy, observations, goals, key, mode="eval"))(keys)
    return {"deviation": float(actions.std(axis=0).mean()), "means": np.asarray(actions.mean(axis=0))}


def success(agent: Agent, plan: Plan, sizes: envs.Sizes, keys: jax.Array, policies: Any, given: Settings) -> float:
    """Returns the share of the run's evaluation episodes in which an agent succeeds."""
    make = envs.factory(plan.env)
    evaluator = Evaluator(agent, make, keys, tasks=sizes.tasks, episodes=given.eval_episodes, workers=given.workers)
    try:
        return float(np.mean(evaluator(policies, mode="eval").successes))
    finally:
        evaluator.close()


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    given = flags.read(Settings, arguments, __doc__ or "")
    if given is None:
        return 0
    plan, stored = stored_plan(given.run_dir)
    if plan.settings.agent != "gc_sscp" or plan.agent_config.hops != 1:
        raise UserError(f"{plan.folder} holds no run of gc_sscp with --agent.hops=1; give one as --run_dir")
    sizes = envs.sizes(plan.env)
    agent, keys = build_agent(plan, sizes, None), root_keys(jnp.array(plan.seeds, jnp.uint32))
    networks = agent.act.args[0]  # type: ignore[attr-defined]
    ways = {"own": gc_sscp.draw_noise, "shared": shared}
    agents = {name: agent._replace(act=partial(act, networks, draw)) for name, draw in ways.items()}
    step, states = load_states(plan.folder, agent, keys)
    policies = jax.vmap(agent.policy, in_axes=(jax.tree.map(lambda _: 0, states).replace(step=None),))(states)
    env = envs.factory(plan.env)()
    starts = [env.reset(seed=seed, options={"task_id": 1 + seed % sizes.tasks}) for seed in range(50)]
    observations, goals = (
        jnp.asarray(np.array(x), jnp.float32) for x in zip(*((o, i["goal"]) for o, i in starts), strict=True)
    )
    report: dict[str, Any] = {"run": stored["command"], "step": step, "episodes_per_task": given.eval_episodes}
    one = jax.tree.map(lambda x: x[0], policies)
    found = {name: spread(each, one, observations, goals, given.draws) for name, each in agents.items()}
    for name, each in agents.items():
        report[name] = {"deviation_of_actions": found[name]["deviation"]}
        if given.eval_episodes:
            report[name]["success"] = success(each, plan, sizes, keys, policies, given)
        print(name, report[name], flush=True)
    means = [found[name]["means"] for name in ways]
    report["difference_of_mean_actions"] = float(np.abs(means[0] - means[1]).mean())
    report["deviation_of_mean_actions_between_states"] = float(means[0].std(axis=0).mean())
    report |= {"git_commit": git_commit(), "hardware": hardware()}
    out = Path(given.out) if given.out else plan.folder / "shared_noise.json"
    loggers.write_json(out, report)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    flags.run(main)
