"""Evaluates a run, acting in other ways: python experiments/evaluate.py --run_dir=DIR --vary=eval_steps --values=1,5.

The newest checkpoint is taken. The field must be one that only acting reads: eval_steps (FPMD, DPMD), completion_steps
(SSCP), hops (GC-SSCP) or candidates. Episodes are those of the run's own evaluations, so that the same settings give
the same numbers. The time of an action is that of one observation, host and device together. The numbers go to a JSON
file, and as a table to a Markdown file beside it.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import envs, flags, loggers, settings
from flowrl.agent import Agent
from flowrl.config import setting
from flowrl.errors import UserError
from flowrl.evaluate import Evaluator
from flowrl.files import replacing
from flowrl.parts import build_agent
from flowrl.programs import load_states, stored_plan
from flowrl.provenance import git_commit, hardware, versions
from flowrl.stats import mean_interval
from flowrl.streams import root_keys
from flowrl.summary import METRICS, evaluation_lines, judged, shown

ACTING = ("eval_steps", "completion_steps", "hops", "candidates")
"""Fields of agents that change how a trained policy acts."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to evaluate."""

    run_dir: str | None = setting(None, "Folder of the run.")
    vary: str | None = setting(None, f"Field of the agent's settings: {', '.join(ACTING)}.")
    values: str = setting("1", "Its values, whole numbers separated by commas.")
    eval_episodes: int | None = setting(None, "Episodes per task; the run's own number if absent.")
    workers: int | None = setting(None, "Processes for environments; one per core if absent.")
    out: str | None = setting(None, "JSON file for the numbers; <run_dir>/evaluate_<field>.json if absent.")


def milliseconds_per_action(agent: Agent, policy: Any, sizes: envs.Sizes, mode: Any, repeats: int = 200) -> float:
    """Returns the time of one action for one observation, the median of several."""
    act = jax.jit(functools.partial(agent.act, mode=mode))
    arguments = (policy, jnp.zeros((1, sizes.observation_dim)), jnp.zeros((1, sizes.goal_dim)), jax.random.key(0))
    act(*arguments).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        act(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds))


def acting_with(plan: settings.Plan, sizes: envs.Sizes, field: str, value: int) -> Agent:
    """Builds the run's agent with one value of the field.

    Raises:
        UserError: The agent cannot act so.
    """
    try:
        config = dataclasses.replace(plan.agent_config, **{field: value})
        return build_agent(dataclasses.replace(plan, agent_config=config), sizes, None)
    except UserError as error:
        raise UserError(f"--values: {value} cannot be evaluated: {error}") from error


def evaluate(plan: settings.Plan, sizes: envs.Sizes, agent: Agent, given: Settings, value: int) -> list[dict[str, Any]]:
    """Evaluates the run as `agent`, which has one value of the field; returns a row for each of its modes."""
    keys = root_keys(jnp.array(plan.seeds, jnp.uint32))
    step, states = load_states(plan.folder, agent, keys)
    policies = jax.vmap(agent.policy, in_axes=(jax.tree.map(lambda _: 0, states).replace(step=None),))(states)
    episodes = given.eval_episodes or plan.settings.eval_episodes
    if not episodes:
        raise UserError("the run has no evaluation episodes; give --eval_episodes=N")
    evaluator = Evaluator(
        agent, envs.factory(plan.env), keys, tasks=sizes.tasks, episodes=episodes, workers=given.workers,
        slots=envs.most(plan.env),
    )  # fmt: skip
    rows = []
    try:
        for mode in agent.evaluations:
            outcome = evaluator(policies, mode=mode)
            metric, lines = judged(evaluation_lines(step, plan.trials, mode, outcome, plan.env))
            if metric is None or {line["seed"] for line in lines} != {*plan.seeds}:
                raise UserError(f"{plan.env.name} gave no finite numbers in the episodes of a seed; mend it")
            per_seed = [float(np.mean([x[metric] for x in lines if x["seed"] == seed])) for seed in plan.seeds]
            interval = mean_interval(np.array(per_seed))
            one = jax.tree.map(lambda x: x[0], policies)
            rows.append(
                {
                    str(given.vary): value,
                    "mode": mode,
                    "step": step,
                    metric: interval.mean,
                    "interval_95": [interval.low, interval.high] if len(per_seed) > 1 else None,
                    "per_seed": dict(zip(map(str, plan.seeds), per_seed, strict=True)),
                    "episodes_per_task": episodes,
                    "milliseconds_per_action": milliseconds_per_action(agent, one, sizes, mode),
                }
            )
    finally:
        evaluator.close()
    return rows


def table(field: str, rows: list[dict[str, Any]]) -> str:
    """Returns the results as a Markdown table."""
    metric = next(name for name in METRICS if name in rows[0])
    lines = [f"| {field} | mode | {metric} | 95 % interval | ms per action |", "|---|---|---|---|---|"]
    for row in rows:
        bounds = row["interval_95"]
        interval = "–" if bounds is None else " to ".join(shown(metric, bound) for bound in bounds)
        mean, time_of_one = shown(metric, row[metric]), f"{row['milliseconds_per_action']:.3f}"
        lines.append(f"| {row[field]} | {row['mode']} | {mean} | {interval} | {time_of_one} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    given = flags.read(Settings, arguments, __doc__ or "")
    if given is None:
        return 0
    plan, stored = stored_plan(given.run_dir)
    fields = [name for name in ACTING if hasattr(plan.agent_config, name)]
    if given.vary not in fields:
        choices = f"choose {' or '.join(fields)}" if fields else "this agent acts in one way only"
        raise UserError(f"--vary={given.vary} is no way of acting of {plan.settings.agent}; {choices}")
    if not all(part.isdigit() and int(part) > 0 for part in given.values.split(",")):
        raise UserError(f"--values={given.values} is not a list of positive numbers; write for example --values=1,5,20")
    out = Path(given.out) if given.out else plan.folder / f"evaluate_{given.vary}.json"
    if out.suffix != ".json":
        raise UserError(f"--out={given.out} is no JSON file; end it in .json")
    if plan.env.env_id is None:
        raise UserError(f"{plan.env.name} cannot be evaluated here")
    sizes = envs.sizes(plan.env)
    agents = {value: acting_with(plan, sizes, given.vary, value) for value in map(int, given.values.split(","))}
    rows = []
    for value, agent in agents.items():
        for row in evaluate(plan, sizes, agent, given, value):
            rows.append(row)
            print({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
    report = {
        "command": " ".join(["python", "experiments/evaluate.py", *(x for x in arguments[1:] if "/" not in x)]),
        "run": stored["command"],
        "run_git_commit": stored["git_commit"],
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("jax", "jaxlib", "mujoco", "gymnasium"),
        "results": rows,
    }
    loggers.write_json(out, report)
    with replacing(out.with_suffix(".md")) as temporary:
        temporary.write_text(table(str(given.vary), rows))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    flags.run(main)
