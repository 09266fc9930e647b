"""Shows which agents learn the same bytes in two checkouts.

python experiments/evidence/same_learning.py --data=FILE --before=DIR

Every agent of this checkout is trained by both checkouts' own `experiments/main.py` on a file in OGBench's format, two
seeds and a few hundred updates, with evaluations; those that can learn online do so too, in another environment.
`metrics.jsonl` and `eval.jsonl` are compared byte for byte; where they differ, the first metrics that do are named, and
the largest difference of all, relative to the number. Both run on this machine with this Python, since floats are equal
only there. A flag that the other checkout has by another name is given as --old=NEW:OLD, several separated by commas.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowrl import agents, config
from flowrl.cli import flags
from flowrl.config import MOST_COUNT, record, static
from flowrl.data.samplers import Transitions
from flowrl.errors import UserError
from flowrl.experiment.settings import LEAST
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.run_folder import logs

HERE = Path(__file__).resolve().parents[2]
COMPARED = ("metrics.jsonl", "eval.jsonl")
SINGLE_TASK = "-singletask"


OLD = "log.interval:log_interval,eval.interval:eval_interval,eval.episodes:eval_episodes"
OLD += ",checkpoint.interval:checkpoint_interval,online.steps:online_steps,online.warmup_steps:warmup_steps"


@record
class Settings:
    """What is compared."""

    before: str = static("", "Folder of the other checkout.")
    data: str = static("", "An .npz file in OGBench's format.")
    env: str = static("pointmaze-medium-navigate", "Whose data it is; agents without goals learn its default task.")
    online: str = static("Pendulum-v1", "Where agents that can learn online do so; empty for nowhere.")
    agents: str = static("", "Names, separated by commas; all if absent.")
    steps: int = static(200, "Updates.", high=MOST_COUNT)
    hidden_dims: str = static("64,64", "Hidden layers of every network.")
    old: str = static(OLD, "Names of flags here and in the other checkout, NEW:OLD; empty where they are the same.")
    out: str = static("", "JSON file for the record.")


def kind_of(agent: str) -> Any:
    """Returns what kind of batches an agent reads."""
    usual = agents.default(agent)
    return agents.build(agent, usual, LEAST).batch(usual)


def command(
    checkout: Path, agent: str, settings: Settings, folder: Path, old: dict[str, str], *, online: bool
) -> list[str]:
    """Returns the command that trains one agent in a checkout, which has some flags by `old` names."""
    steps = settings.steps
    given: dict[str, Any] = {
        "agent": agent, "preset": "none", "run_dir": folder, "log.interval": 20, "eval.interval": steps // 2,
        "checkpoint.interval": steps, "eval.episodes": 1, "num_seeds": 2, "workers": 1,
        "agent.hidden_dims": settings.hidden_dims, "agent.batch_size": 64,
    }  # fmt: skip
    if online:
        given |= {"env": settings.online, "data": "none", "online.steps": steps, "online.warmup_steps": 20, "steps": 0}
    else:
        task = "" if kind_of(agent).goals else SINGLE_TASK
        given |= {"env": f"{settings.env}{task}", "data": settings.data, "steps": steps}
    flagged = [f"--{old.get(name, name)}={value}" for name, value in given.items()]
    return [sys.executable, str(checkout / "experiments" / "main.py"), *flagged]


def trained(
    checkout: Path, agent: str, settings: Settings, folder: Path, old: dict[str, str], *, online: bool
) -> dict[str, str]:
    """Trains an agent in a checkout, which has some flags by `old` names, and returns the text of its logs.

    Raises:
        UserError: The checkout's program fails.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    line = command(checkout, agent, settings, folder, old, online=online)
    run = subprocess.run(line, env=environment, cwd=checkout, capture_output=True, text=True)
    if run.returncode:
        raise UserError(f"{agent} in {checkout} ended with status {run.returncode}: {run.stderr.strip()[-300:]}")
    return {name: (folder / name).read_text() for name in COMPARED}


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """Returns what of a log's line is a number."""
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


def first_difference(before: str, after: str) -> str:
    """Returns where and by how much two logs differ; empty where they do not."""
    if before == after:
        return ""
    pairs = [[json.loads(line) for line in pair] for pair in zip(before.splitlines(), after.splitlines(), strict=False)]
    if before.count("\n") != after.count("\n") or any(old.keys() != new.keys() for old, new in pairs):
        return f"{len(before.splitlines())} lines before, {len(after.splitlines())} after, or other names in them"
    differing = [(old["step"], [name for name in old if old[name] != new[name]]) for old, new in pairs if old != new]
    if not differing:
        return "how numbers are written"
    step, names = differing[0]
    gaps = [abs(was[name] - now[name]) / max(abs(was[name]), 1e-30)
            for was, now in ((numbers(old), numbers(new)) for old, new in pairs) for name in was]  # fmt: skip
    shown = f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    return f"step {step}: {shown}; at most {max(gaps):.1g} of a number"


def compare(settings: Settings) -> dict[str, Any]:
    """Returns for every agent what first differs in each of its logs."""
    names = settings.agents.split(",") if settings.agents else agents.names()
    old = dict(pair.split(":") for pair in settings.old.split(",") if pair)
    checkouts = {"before": (Path(settings.before).resolve(), old), "after": (HERE, dict[str, str]())}
    found: dict[str, Any] = {}
    ways = [(agent, False) for agent in names]
    ways += [(agent, True) for agent in names if settings.online and isinstance(kind_of(agent), Transitions)]
    for agent, online in tqdm(ways, desc="trainings"):
        with tempfile.TemporaryDirectory() as folder:
            logs = {
                when: trained(path, agent, settings, Path(folder) / when, flags_of, online=online)
                for when, (path, flags_of) in checkouts.items()
            }
        way = f"{agent} online" if online else agent
        found[way] = {name: first_difference(logs["before"][name], logs["after"][name]) for name in COMPARED}
        told = {name: what for name, what in found[way].items() if what}
        tqdm.write(f"{way:>14}  {'; '.join(f'{name}: {what}' for name, what in told.items()) or 'the same bytes'}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status: 0, also where something differs."""
    settings = flags.read(Settings(), arguments, str(__doc__))
    if settings is None:
        return 0
    for flag, path in (("before", settings.before), ("data", settings.data)):
        if not path or not Path(path).exists():
            raise UserError(f"--{flag}={path}: give a folder of another checkout as --before and a file as --data")
    settings = config.put(settings, {"data": str(Path(settings.data).resolve())})
    found = compare(settings)
    if settings.out:
        report = {
            "settings": config.values(settings) | {"before": "", "out": "", "data": Path(settings.data).name},
            "commits": {"before": git_commit(Path(settings.before)), "after": git_commit()},
            "hardware": hardware(),
            "versions": versions("jax", "jaxlib", "numpy"),
            "differences": found,
        }
        logs.write_json(Path(settings.out), report)
    return 0


if __name__ == "__main__":
    flags.run(main)
