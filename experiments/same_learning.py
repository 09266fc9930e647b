"""Shows which agents learn the same bytes in two checkouts: python experiments/same_learning.py --data=F --before=DIR.

Every agent of this checkout is trained by both checkouts' own `experiments/main.py` on a file in OGBench's format, two
seeds and a few hundred updates, with evaluations. `metrics.jsonl` and `eval.jsonl` are compared byte for byte; where
they differ, the first metric that does is named. Both run on this machine with this Python, since floats are equal
only there.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowrl import agent as agents
from flowrl import flags, loggers
from flowrl.agent import Spec
from flowrl.config import setting
from flowrl.errors import UserError
from flowrl.provenance import git_commit, hardware, versions

HERE = Path(__file__).resolve().parent.parent
COMPARED = ("metrics.jsonl", "eval.jsonl")
SINGLE_TASK = "-singletask"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared."""

    before: str | None = setting(None, "Folder of the other checkout.")
    data: str | None = setting(None, "An .npz file in OGBench's format.")
    env: str = setting("pointmaze-medium-navigate", "Whose data it is; agents without goals learn its default task.")
    agents: str | None = setting(None, "Names, separated by commas; all if absent.")
    steps: int = setting(200, "Updates.")
    hidden_dims: str = setting("64,64", "Hidden layers of every network.")
    out: str | None = setting(None, "JSON file for the record.")


def command(checkout: Path, agent: str, settings: Settings, folder: Path) -> list[str]:
    """Returns the command that trains one agent in a checkout."""
    module = agents.load(agent)
    goals = module.make(module.Config(), Spec(1, 1, 1)).needs.goals
    return [
        sys.executable, str(checkout / "experiments" / "main.py"), f"--agent={agent}", "--preset=none",
        f"--env={settings.env}{'' if goals else SINGLE_TASK}", f"--data={settings.data}", f"--run_dir={folder}",
        f"--steps={settings.steps}", "--log_interval=20", f"--eval_interval={settings.steps // 2}",
        f"--checkpoint_interval={settings.steps}", "--eval_episodes=1", "--num_seeds=2", "--workers=1",
        f"--agent.hidden_dims={settings.hidden_dims}", "--agent.batch_size=64",
    ]  # fmt: skip


def trained(checkout: Path, agent: str, settings: Settings, folder: Path) -> dict[str, str]:
    """Trains an agent in a checkout and returns the text of its logs.

    Raises:
        UserError: The checkout's program fails.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    run = subprocess.run(
        command(checkout, agent, settings, folder), env=environment, cwd=checkout, capture_output=True, text=True
    )
    if run.returncode:
        raise UserError(f"{agent} in {checkout} ended with status {run.returncode}: {run.stderr.strip()[-300:]}")
    return {name: (folder / name).read_text() for name in COMPARED}


def first_difference(before: str, after: str) -> str:
    """Returns the step and the names of what first differs between two logs; empty where nothing does."""
    if before == after:
        return ""
    for old, new in zip(before.splitlines(), after.splitlines(), strict=False):
        if old != new:
            was, now = json.loads(old), json.loads(new)
            names = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
            shown = f"step {was.get('step')}: {', '.join(names[:4])}" + (", …" if len(names) > 4 else "")
            return shown if names else f"step {was.get('step')}: how numbers are written"
    return f"{len(before.splitlines())} lines before, {len(after.splitlines())} after"


def compare(settings: Settings) -> dict[str, Any]:
    """Returns for every agent what first differs in each of its logs."""
    names = settings.agents.split(",") if settings.agents else agents.names()
    checkouts = {"before": Path(str(settings.before)).resolve(), "after": HERE}
    found: dict[str, Any] = {}
    for agent in tqdm(names, desc="agents"):
        with tempfile.TemporaryDirectory() as folder:
            logs = {when: trained(path, agent, settings, Path(folder) / when) for when, path in checkouts.items()}
        found[agent] = {name: first_difference(logs["before"][name], logs["after"][name]) for name in COMPARED}
        told = {name: what for name, what in found[agent].items() if what}
        tqdm.write(f"{agent:>10}  {'; '.join(f'{name}: {what}' for name, what in told.items()) or 'the same bytes'}")
    return found


def commit_of(checkout: Path) -> str:
    """Returns the commit of another checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return found.stdout.strip()


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status: 0, also where something differs."""
    settings = flags.read(Settings, arguments, str(__doc__))
    if settings is None:
        return 0
    for name in ("before", "data"):
        path = getattr(settings, name)
        if path is None or not Path(path).exists():
            raise UserError(f"--{name}={path}: give a folder of another checkout as --before and a file as --data")
    settings = dataclasses.replace(settings, data=str(Path(str(settings.data)).resolve()))
    found = compare(settings)
    if settings.out:
        record = {
            "settings": dataclasses.asdict(settings)
            | {"before": None, "out": None, "data": Path(str(settings.data)).name},
            "commits": {"before": commit_of(Path(str(settings.before))), "after": git_commit()},
            "hardware": hardware(),
            "versions": versions("jax", "jaxlib", "numpy"),
            "differences": found,
        }
        loggers.write_json(Path(settings.out), record)
    return 0


if __name__ == "__main__":
    flags.run(main)
