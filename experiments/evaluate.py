"""Evaluates a run again, of any agent: python experiments/evaluate.py --run_dir=DIR [--episodes=100] [--step=N].

The newest checkpoint is taken, or that of --step, in the environment of the run and with its normalisation; the folder
of a sweep stands for all its runs. The dataset is needed only where it names the environment (Minari). Nothing in the
run's folder is changed: a table is printed, and goes with all numbers to --out=FILE.json and FILE.md.

--vary=SETTING --values=1,5 has the policy act in other ways, by one of the agent's settings that acting alone reads:
eval_steps (FPMD, DPMD), completion_steps (SSCP), hops (GC-SSCP), choice.num_samples. Episodes are those of the run's
own evaluations, so that the same settings give the same numbers. The time of an action is that of one observation, host
and device together.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from flowrl import agents
from flowrl.cli import flags
from flowrl.config import MOST_COUNT, MOST_EPISODES, MOST_WORKERS, flatten, put, record, stacked, static
from flowrl.config import values as values_of
from flowrl.errors import UserError
from flowrl.experiment.examiner import evaluator_of
from flowrl.experiment.loading import load_states
from flowrl.experiment.settings import Plan, check
from flowrl.experiment.speed import acting_times
from flowrl.experiment.stored import read_plan
from flowrl.machine import hosts
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.run_folder import evaluations, logs, texts
from flowrl.run_folder.runs import points
from flowrl.run_folder.summary import SINGLE, acting_notes, evaluation_lines, shown, summarize
from flowrl.tasks.sources import Source
from flowrl.training import compiled

ACTING = 0.5
"""Seconds that an action's time is measured for."""


@record
class Settings:
    """What to evaluate."""

    run_dir: str = static("", "Folder of the run, or of a sweep.")
    episodes: int | None = static(None, "Episodes per task; the run's own number if absent.", high=MOST_EPISODES)
    step: int | None = static(None, "Of which checkpoint; the newest if absent.", low=0, high=MOST_COUNT)
    vary: str = static("", "One of the agent's settings that acting alone reads.")
    values: str = static("1", "Its values, separated by commas.")
    workers: int | None = static(None, "Processes for environments; one per core if absent.", high=MOST_WORKERS)
    out: str = static("", "JSON file for the numbers, with the table beside it.")


# ------------------------------------------------------------------------------------------------- what is evaluated


def plans(given: Settings) -> list[tuple[Plan, dict[str, Any]]]:
    """Returns what is evaluated: a run, or the parts of a sweep; each with its `config.json`.

    Raises:
        UserError: There is none, or it cannot be evaluated so.
    """
    if not given.run_dir:
        raise UserError("which run? give --run_dir=DIR")
    found = [read_plan(folder) for folder in evaluations.expand([Path(given.run_dir).expanduser()])]
    return [(_evaluated(plan, stored, given), stored) for plan, stored in found]


def _evaluated(plan: Plan, stored: dict[str, Any], given: Settings) -> Plan:
    """Returns a run's plan with the evaluation that is asked for, in the environment that it is made in."""
    episodes = plan.settings.eval.episodes if given.episodes is None else given.episodes
    if not episodes:
        raise UserError(f"no episodes to evaluate {plan.folder} in; give --episodes=N")
    data = stored["data"]
    changed = {"eval.episodes": episodes, "workers": given.workers, "log.video_episodes": 0, "data": data["path"]}
    plan = dataclasses.replace(plan, settings=put(plan.settings, changed))
    check(plan)
    source = Source(**{**data, "path": Path(data["path"])})
    plan = dataclasses.replace(plan, env=plan.env.evaluated(source))
    if plan.env.env_id is None:
        raise UserError(f"{plan.env.name} cannot be evaluated here; {plan.env.note or 'its data name no environment'}")
    return plan


def ways(plan: Plan, given: Settings) -> Iterator[tuple[dict[str, Any], Plan]]:
    """Yields how the run's agent is to act: as it was trained, or with each value of a setting.

    Raises:
        UserError: The agent cannot act so.
    """
    if not given.vary:
        yield {}, plan
        return
    known = {entry.name: entry for entry in flatten(plan.config) if entry.field.metadata["acting"]}
    if given.vary not in known:
        choices = f"choose {' or '.join(known)}" if known else "this agent acts in one way only"
        raise UserError(f"--vary={given.vary} is no way of acting of {plan.settings.agent}; {choices}")
    for text in given.values.split(","):
        try:
            value = texts.read_text(known[given.vary].kind, text)
        except ValueError as error:
            raise UserError(f"--values={given.values}: {text} {error}") from error
        own = dataclasses.replace(plan, config=put(plan.config, {given.vary: value}))
        try:
            check(own)
        except UserError as error:
            raise UserError(f"--values: {value} cannot be evaluated: {error}") from error
        yield {given.vary: value}, own


# -------------------------------------------------------------------------------------------------------- numbers


def evaluate(plan: Plan, step: int | None) -> list[dict[str, Any]]:
    """Evaluates the runs of a plan; returns a row for each configuration in each of the agent's evaluations."""
    facts, settings = plan.env.facts(), plan.settings
    spec = facts.spec
    agent = agents.build(settings.agent, plan.config, spec)
    configs = stacked(plan.config, [run.values for run in plan.runs])
    step, states, normalizer = load_states(
        plan.folder, settings.agent, agent, configs, len(plan.runs),
        goals_are_states=plan.env.goals == "state", step=step,
    )  # fmt: skip
    evaluator = evaluator_of(agent, plan, facts.tasks, plan.runs)
    total = len(plan.runs) * max(1, facts.tasks) * settings.eval.episodes
    lines, times = list[dict[str, Any]](), {}
    try:
        for mode, config in agent.evaluations(states.config).items():
            policies = compiled.policies_of(agent, states.replace(config=config))
            one = jax.tree.map(lambda x: x[0], policies).replace(normalizer=normalizer)
            with tqdm(total=total, unit="episode", desc=mode, disable=hosts.no_bars(), leave=False) as bar:

                def on_step(done: int, _: int, bar: Any = bar) -> None:
                    bar.update(done - bar.n)

                outcome = evaluator(policies.replace(normalizer=normalizer), on_step)
            lines += evaluation_lines(step, plan.runs, mode, outcome, plan.env.score)
            times[mode] = 1e3 * acting_times(agent, spec, one, ACTING)[1]
    finally:
        evaluator.close()
    notes = acting_notes(agent.evaluations(plan.config))
    return _rows(
        plan,
        summarize(values_of(settings), plan.env.env_id, plan.env.dataset, plan.runs, lines, notes, swept=plan.swept),
        step,
        times,
    )


def _rows(plan: Plan, summary: dict[str, Any], step: int, times: dict[str, float]) -> list[dict[str, Any]]:
    """Returns what an evaluation comes to for each configuration of a plan in each mode."""
    rows = []
    for values, part in zip(points(plan.runs), summary.get("configurations", [summary]), strict=True):
        own = {index: run for index, run in enumerate(plan.runs) if run.values == values}
        diverged = [event["seed"] for event in evaluations.divergences(plan.folder) if event["run"] in own]
        for mode in times:
            found = part if mode == SINGLE else part[mode]
            if (metric := found["metric"]) is None:
                raise UserError(f"{plan.env.name} gave no finite numbers in the episodes of a seed; mend it")
            rows.append(
                next(iter(own.values())).swept
                | {
                    "mode": mode,
                    "step": step,
                    metric: found[metric],
                    "interval_95": found[f"{metric}_interval_95"],
                    "per_seed": dict(
                        zip((str(run.seed) for run in own.values()), found[f"{metric}_per_seed"], strict=True)
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
    given = flags.read(Settings(), arguments, __doc__ or "")
    if given is None:
        return 0
    if given.out and not given.out.endswith(".json"):
        raise UserError(f"--out={given.out} is no JSON file; end it in .json")
    found, rows = plans(given), list[dict[str, Any]]()
    for plan, _ in found:
        fixed = {"part": plan.folder.name} if len(found) > 1 else {}
        for way, own in [*ways(plan, given)]:
            rows += [fixed | way | row for row in evaluate(own, given.step)]
    print(table(rows), end="")
    if given.out:
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
        logs.write_json(out, report)
        logs.write_text(out.with_suffix(".md"), table(rows))
        print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    flags.run(main)
