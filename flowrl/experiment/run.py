"""One training run in a run directory: its folder and data, the training itself, and how it ends."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from flowrl import agents
from flowrl import config as configs
from flowrl.data.dataset import Dataset
from flowrl.envs.episodes import EnvironmentFailed
from flowrl.errors import SharedError, UserError
from flowrl.experiment import estimates
from flowrl.experiment.banner import describe, device_text, print_banner, warn_of_changes
from flowrl.experiment.build import prepare
from flowrl.experiment.runner import Runner
from flowrl.experiment.settings import Plan
from flowrl.machine import devices, hosts
from flowrl.machine.files import make_folder
from flowrl.machine.signals import Signals, promptly, within
from flowrl.run_folder import logs
from flowrl.run_folder.layout import CONFIG, LOCK, claiming, unused
from flowrl.tasks import sources
from flowrl.training import loop
from flowrl.training.loop import Diverged, Divergence

LARGE = 1e3
"""Observations or rewards of that size may be what makes networks diverge."""


def execute(plan: Plan, stored: dict[str, Any] | None = None, signals: Signals | None = None) -> int:
    """Trains as planned, from the start or from the newest checkpoint.

    Args:
        plan: What to do.
        stored: The run's `config.json` if it is resumed.
        signals: Notes signals to stop; for who wants to know of one that came when the run was as good as finished.

    Returns:
        An exit status: 0, or 128 + the signal that stopped the run.

    Raises:
        UserError: Data, folder or checkpoint are unusable, a package is missing, hosts were given different commands,
            or the run diverged.
    """
    hosts.require_same({"--run_dir": str(plan.folder.absolute())})
    hosts.on_first(plan.settings.log.require_packages)
    hosts.agreed(partial(estimates.require, plan, begun=stored is not None))
    with claimed(plan.folder):
        return _execute(plan, stored, signals or Signals())


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes from writing to it; the first host does so for all.

    Where nothing was written to it in the end, it is taken away again.

    Raises:
        UserError: It cannot be written to, another process has it, or hosts do not share it.
    """
    with contextlib.ExitStack() as claims:

        def look() -> None:
            make_folder(folder)
            if not (folder / LOCK).exists():
                raise UserError(f"--run_dir={folder} is not the folder that host 0 has; give one that all hosts share")

        hosts.on_first(lambda: claims.enter_context(claiming(folder)))
        hosts.agreed(look)
        yield


def _require_unused(plan: Plan) -> None:
    """Checks on the first host that nothing is in the folder of a new run; others may be late to look."""
    if not hosts.first() or unused(plan.folder):
        return
    if (plan.folder / CONFIG).exists():
        raise UserError(f"{plan.folder} is not empty; continue its run with --resume, or choose another --run_dir")
    raise UserError(f"{plan.folder} is not empty and holds no run (no {CONFIG}); choose another --run_dir")


def _located(plan: Plan, stored: dict[str, Any] | None) -> sources.Source:
    """Returns the data of a run, which for one that is resumed must be those that it began with."""
    source = plan.env.locate(plan.settings.data, workers=plan.settings.workers)
    if stored is not None and source.sha256 != stored["data"]["sha256"]:
        raise UserError(
            f"{source.path} is not the data that the run in {plan.folder} began with; give it as --data=PATH"
        )
    return source


def _require_same(config: dict[str, Any]) -> None:
    """Checks that all hosts are about to train the same runs; data may lie in other places."""
    flags = {f"--{name}": value for name, value in config["settings"].items() if name not in ("workers", "data")}
    agent = {f"--agent.{name}": value for name, value in config["agent_config"].items()}
    versions = {f"version of {name}": value for name, value in config["versions"].items()}
    hosts.require_same(flags | agent | versions | {"data": config["data"]["sha256"], "commit": config["git_commit"]})


def _execute(plan: Plan, stored: dict[str, Any] | None, signals: Signals) -> int:
    resume = stored is not None
    if not resume:
        hosts.agreed(partial(_require_unused, plan))
    source = hosts.agreed(partial(_located, plan, stored))
    settings = plan.settings
    layout = devices.layout(len(plan.runs), settings.shard, padded=not settings.online.steps)
    parts = hosts.agreed(partial(prepare, plan, source, layout))
    plan = parts.plan
    hosts.agreed(partial(estimates.require, plan, spec=parts.facts.spec, begun=resume))
    config = describe(plan, source, parts.facts.told(plan.env.goals))
    _require_same(config)
    with signals, within(None) if hosts.count() > 1 else promptly():  # hosts wait for each other
        runner = Runner(parts, layout, signals)
        try:
            _announce(runner, source)
            if stored is not None:
                warn_of_changes(stored, config)
            elif hosts.first():
                logs.write_json(plan.folder / CONFIG, config)
            runner.train(resume=resume)
        except loop.Stopped:
            reached = f"{settings.unit} {runner.checkpoints.latest()}"
            print(f"stopped at {reached}; continue with --resume --run_dir={plan.folder}")
            return 128 + max(hosts.gather(int(signals.received or 0)))
        except Diverged as error:
            raise SharedError(_diverged(runner, error.divergence)) from error
        except EnvironmentFailed as error:
            raise UserError(
                f"{error}; mend the environment, and --resume --run_dir={plan.folder} goes on from {settings.unit} "
                f"{runner.checkpoints.latest()}"
            ) from error
        finally:
            with promptly():
                runner.close()
    return 0


def _announce(runner: Runner, source: sources.Source) -> None:
    """Says what begins."""
    plan = runner.parts.plan
    rows = {
        "data": (source.detail, *runner.parts.contents),
        "note": (*runner.parts.doubts, *configs.notes(plan.config, "agent.")),
        "preset": plan.source,
        "device": device_text(runner.layout.devices),
        "run": str(plan.folder),
    }
    print_banner(plan, runner.states, rows)


def _diverged(runner: Runner, event: Divergence) -> str:
    """Says where a training diverged, and what may have made it: the step size only where it is a large one."""
    plan, run = runner.parts.plan, runner.parts.plan.runs[event.run]
    own, usual = configs.values(plan.config) | dict(run.values), configs.values(agents.default(plan.settings.agent))
    rate = own.get("learning_rate", 0.0)
    told = (
        f"diverged: {event.metric} of the run with seed {run.seed} is not finite after update {event.step}; the "
        f"checkpoint at {runner.checkpoints.latest()} in {plan.folder} is from before it; "
    )
    if rate > usual.get("learning_rate", rate):
        return f"{told}try a smaller --agent.learning_rate than {rate:g}"
    if (largest := _largest(runner.parts.dataset)) is not None and largest[1] > LARGE:
        name, size = largest
        remedy = "--normalize.observations" if "observations" in name else "a smaller --normalize.reward_scale"
        return f"{told}the data's {name} are as large as {size:.3g}: try {remedy}"
    return f"{told}look at what grew before in metrics.jsonl; smaller weights of the losses or step sizes may help"


def _largest(dataset: Dataset | None) -> tuple[str, float] | None:
    """Returns the field of the offline data with the largest number, as the agent sees it, and that number."""
    fields = {} if dataset is None else dataset.fields
    sizes = {name: float(jnp.abs(fields[name]).max()) for name in ("observations", "rewards") if name in fields}
    return max(sizes.items(), key=lambda item: item[1]) if sizes else None
