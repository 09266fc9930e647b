"""Evaluates a run again, of any agent: python experiments/evaluate.py --run_dir=DIR [--eval_episodes=100] [--step=N].

The newest checkpoint is taken, or that of --step, in the environment of the run and with its normalisation; the folder
of a sweep stands for all its runs. The dataset is needed only where it names the environment (Minari). Nothing in the
run's folder is changed: a table is printed, and goes with all numbers to --out=FILE.json and FILE.md.

--vary=FIELD --values=1,5 has the policy act in other ways. The field must be one that only acting reads: eval_steps
(FPMD, DPMD), completion_steps (SSCP), hops (GC-SSCP) or candidates. Episodes are those of the run's own evaluations, so
that the same settings give the same numbers. The time of an action is that of one observation, host and device
together.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flowrl import curves, envs, flags, hosts, loggers
from flowrl.agent import Agent
from flowrl.config import MOST_EPISODES, MOST_WORKERS, setting
from flowrl.data.sources import Source
from flowrl.errors import UserError
from flowrl.evaluate import Evaluator
from flowrl.parts import build_agent, with_environment
from flowrl.programs import load_states
from flowrl.provenance import git_commit, hardware, versions
from flowrl.settings import Plan, check, points, read_plan
from flowrl.streams import root_keys
from flowrl.summary import evaluation_lines, shown, summarize

ACTING = ("eval_steps", "completion_steps", "hops", "candidates")
"""Fields of agents that change how a trained policy acts."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to evaluate."""

    run_dir: str | None = setting(None, "Folder of the run, or of a sweep.")
    eval_episodes: int | None = setting(
        None, "Episodes per task; the run's own number if absent.", low=1, high=MOST_EPISODES
    )
    step: int | None = setting(None, "Of which checkpoint; the newest if absent.", low=0)
    vary: str | None = setting(None, f"Field of the agent's settings: {', '.join(ACTING)}.")
    values: str = setting("1", "Its values, whole numbers separated by commas.")
    workers: int | None = setting(None, "Processes for environments; one per core if absent.", low=1, high=MOST_WORKERS)
    out: str | None = setting(None, "JSON file for the numbers, with the table beside it.")


# ------------------------------------------------------------------------------------------------- what is evaluated


def plans(given: Settings) -> list[tuple[Plan, dict[str, Any]]]:
    """Returns what is evaluated: a run, or the parts of a sweep; each with its `config.json`.

    Raises:
        UserError: There is none, or it cannot be evaluated so.
    """
    if given.run_dir is None:
        raise UserError("which run? give --run_dir=DIR")
    found = [read_plan(folder) for folder in curves.expand([Path(given.run_dir).expanduser()])]
    return [(_evaluated(plan, stored, given), stored) for plan, stored in found]


def _evaluated(plan: Plan, stored: dict[str, Any], given: Settings) -> Plan:
    """Returns a run's plan with the evaluation that is asked for, in the environment that it is made in."""
    episodes = plan.settings.eval_episodes if given.eval_episodes is None else given.eval_episodes
    if not episodes:
        raise UserError(f"no episodes to evaluate {plan.folder} in; give --eval_episodes=N")
    settings = dataclasses.replace(
        plan.settings, eval_episodes=episodes, workers=given.workers, video_episodes=0, data=stored["data"]["path"]
    )
    plan = dataclasses.replace(plan, settings=settings)
    check(plan)
    data = stored["data"]
    plan = with_environment(plan, Source(**{**data, "path": Path(data["path"])}))
    if plan.env.env_id is None:
        raise UserError(f"{plan.env.name} cannot be evaluated here; {plan.env.note or 'its data name no environment'}")
    return plan


def ways(plan: Plan, sizes: envs.Sizes, given: Settings) -> Iterator[tuple[dict[str, int], Plan, Agent]]:
    """Yields how the run's agent is to act: as it was trained, or with each value of a field.

    Raises:
        UserError: The agent cannot act so.
    """
    if given.vary is None:
        yield {}, plan, build_agent(plan, sizes, None)
        return
    fields = [name for name in ACTING if hasattr(plan.agent_config, name)]
    if given.vary not in fields:
        choices = f"choose {' or '.join(fields)}" if fields else "this agent acts in one way only"
        raise UserError(f"--vary={given.vary} is no way of acting of {plan.settings.agent}; {choices}")
    if not all(part.isdecimal() and int(part) > 0 for part in given.values.split(",")):
        raise UserError(f"--values={given.values} is not a list of positive numbers; write for example --values=1,5,20")
    for value in map(int, given.values.split(",")):
        own = dataclasses.replace(plan, agent_config=dataclasses.replace(plan.agent_config, **{given.vary: value}))
        try:
            check(own)
            agent = build_agent(own, sizes, None)
        except UserError as error:
            raise UserError(f"--values: {value} cannot be evaluated: {error}") from error
        yield {given.vary: value}, own, agent


# -------------------------------------------------------------------------------------------------------- numbers


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


def evaluate(plan: Plan, sizes: envs.Sizes, agent: Agent, step: int | None) -> list[dict[str, Any]]:
    """Evaluates the runs of a plan as `agent`; returns a row for each configuration in each of its modes."""
    step, states = load_states(plan, agent, step)
    policies = jax.vmap(agent.policy, in_axes=(jax.tree.map(lambda _: 0, states).replace(step=None),))(states)
    one, settings = jax.tree.map(lambda x: x[0], policies), plan.settings
    total = len(plan.trials) * max(1, sizes.tasks) * int(settings.eval_episodes or 0)
    evaluator = Evaluator(
        agent,
        envs.factory(plan.env),
        root_keys(jnp.array([trial.seed for trial in plan.trials], jnp.uint32)),
        tasks=sizes.tasks,
        episodes=int(settings.eval_episodes or 0),
        workers=settings.workers,
        slots=envs.most(plan.env),
    )
    lines, times = list[dict[str, Any]](), {}
    try:
        for mode in agent.evaluations:
            with tqdm(total=total, unit="episode", desc=mode, disable=hosts.no_bars(), leave=False) as bar:
                outcome = evaluator(policies, lambda done, _, bar=bar: bar.update(done - bar.n), mode=mode)
            lines += evaluation_lines(step, plan.trials, mode, outcome, plan.env)
            times[mode] = milliseconds_per_action(agent, one, sizes, mode)
    finally:
        evaluator.close()
    return _rows(plan, summarize(plan, lines), step, times)


def _rows(plan: Plan, summary: dict[str, Any], step: int, times: dict[str, float]) -> list[dict[str, Any]]:
    """Returns what an evaluation comes to for each configuration of a plan in each mode."""
    rows = []
    for values, part in zip(points(plan.trials), summary.get("configurations", [summary]), strict=True):
        own = [(run, trial) for run, trial in enumerate(plan.trials) if trial.values == values]
        diverged = [event["seed"] for event in curves.divergences(plan.folder) if event["run"] in dict(own)]
        for mode in times:
            found = part if mode == "eval" else part[mode]
            if (metric := found["metric"]) is None:
                raise UserError(f"{plan.env.name} gave no finite numbers in the episodes of a seed; mend it")
            rows.append(
                own[0][1].swept
                | {
                    "mode": mode,
                    "step": step,
                    metric: found[metric],
                    "interval_95": found[f"{metric}_interval_95"],
                    "per_seed": dict(
                        zip((str(trial.seed) for _, trial in own), found[f"{metric}_per_seed"], strict=True)
                    ),
                    "per_task": found[f"{metric}_per_task"],
                    "episodes_per_task": found["episodes_per_task"],
                    "milliseconds_per_action": times[mode],
                    "metric": metric,
                }
                | ({"diverged": diverged} if diverged else {})
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the results as a Markdown table, of which the first columns tell the rows apart."""
    metric = rows[0]["metric"]
    fields = list(rows[0])[: list(rows[0]).index("mode")]
    head = [*fields, "mode", "step", metric, "95 % interval", "seeds", "ms per action"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        bounds, gone = row["interval_95"], row.get("diverged", ())
        interval = "–" if bounds is None else " to ".join(shown(metric, bound) for bound in bounds)
        seeds = ", ".join(
            f"{seed}: {shown(metric, value)}{' (diverged)' * (int(seed) in gone)}"
            for seed, value in row["per_seed"].items()
        )
        cells = [*(row[name] for name in fields), row["mode"], row["step"], shown(metric, row[metric]), interval, seeds]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['milliseconds_per_action']:.3f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    given = flags.read(Settings, arguments, __doc__ or "")
    if given is None:
        return 0
    if given.out is not None and not given.out.endswith(".json"):
        raise UserError(f"--out={given.out} is no JSON file; end it in .json")
    found, rows = plans(given), list[dict[str, Any]]()
    for plan, _ in found:
        sizes = envs.sizes(plan.env)
        for way, own, agent in [*ways(plan, sizes, given)]:
            fixed = {"part": plan.folder.name} if len(found) > 1 else {}
            rows += [fixed | way | row for row in evaluate(own, sizes, agent, given.step)]
    print(table(rows), end="")
    if given.out is not None:
        out, stored = Path(given.out).expanduser(), found[0][1]
        report = {
            "command": " ".join(["python", "experiments/evaluate.py", *(x for x in arguments[1:] if "/" not in x)]),
            "runs": [stored.get("command") for _, stored in found],
            "run_git_commit": stored["git_commit"],
            "git_commit": git_commit(),
            "hardware": hardware(),
            "versions": versions("jax", "jaxlib", "mujoco", "gymnasium"),
            "results": rows,
        }
        loggers.write_json(out, report)
        loggers.write_text(out.with_suffix(".md"), table(rows))
        print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    flags.run(main)
