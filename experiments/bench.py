"""Measures the cost of agents: python experiments/bench.py --agents=sscp,ofql,fql,bc --sizes=equal --runs=1.

For each agent, size and number of mapped runs: compilation time, updates per second (all runs together), floating-point
operations of one update as the compiler counts them, their share of what this machine reaches on float32 matrix
products (512 wide on CPUs, 4,096 on accelerators) in the same process, the memory of a run's state and of the work of
an update, and the time of one action for one observation, host and device together, of one draw and as the agent is
configured. Times of one machine and one process can be compared; others cannot.

With --agents=sac --online=HalfCheetah-v5 it measures instead the online loop, with one update for each environment
step, beside a plain loop over the same Gymnasium environment with the same update and a buffer in numpy.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import agents, tasks
from flowrl.agent import Agent
from flowrl.cli import flags
from flowrl.config import MOST_COUNT, MOST_EPISODES, put, record, stacked, static, values
from flowrl.data import replay
from flowrl.data.dataset import Dataset
from flowrl.data.samplers import Transitions
from flowrl.envs.episodes import SeededEpisodes
from flowrl.errors import UserError
from flowrl.experiment.speed import acting_times, rate, synthetic_dataset
from flowrl.machine.memory import size_of
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.networks import Spec
from flowrl.random_streams import root_keys
from flowrl.run_folder import logs
from flowrl.train_state import TrainState
from flowrl.training import acting, compiled
from flowrl.training.online import Collector, Environments, Online
from flowrl.training.step import train_step

BUFFER = 100_000
"""Transitions that the buffers of online loops hold."""
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},  # the agents' defaults
    "equal": {"hidden_dims": (512, 512, 512), "batch_size": 256},
    "quick": {"hidden_dims": (256, 256, 256), "batch_size": 256},
    "small": {"hidden_dims": (64, 64), "batch_size": 64},
}


@record
class Settings:
    """What to measure."""

    agents: str = static("hiql,gc_sscp,gcivl,gcbc", "Algorithms, separated by commas.")
    sizes: str = static(
        "paper,quick",
        "Network and batch sizes: paper (each agent's), equal (3×512, 256), quick (3×256, 256), small (2×64, 64).",
    )
    runs: str = static("1", "Numbers of mapped runs, separated by commas.")
    maps: str = static("auto", "How runs are mapped: auto, vmap, serial; several separated by commas.")
    seconds: float = static(5.0, "Length of each measurement.", low=0.001, high=86_400)
    observation_dim: int = static(2, "Size of observations and goals; antmaze has 29.", high=MOST_EPISODES)
    action_dim: int = static(2, "Size of actions; antmaze has 8.", high=MOST_EPISODES)
    online: str = static("", "Gymnasium environment in which the online loop is measured.")
    out: str = static("", "JSON file for the numbers.")


def product_width() -> int:
    """Returns how wide a matrix product must be for its arithmetic, not its start, to take the time."""
    return 512 if jax.default_backend() == "cpu" else 4096


def matmul_flops(seconds: float, width: int) -> float:
    """Returns floating-point operations per second of square float32 products, kept inside one program."""

    @jax.jit
    def products(x: jax.Array, count: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, y: y @ x, x)

    x = jnp.eye(width) * 0.999
    products(x, jnp.int32(1)).block_until_ready()
    return rate(lambda count: products(x, jnp.int32(count)).block_until_ready(), seconds) * 2 * width**3


def measure(name: str, size: str, runs: int, mode: str, settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """Measures one agent at one size."""
    spec = Spec.of_sizes(settings.observation_dim, settings.action_dim, settings.observation_dim)
    config = sized(name, size)
    agent = agents.build(name, config, spec)
    resolved = compiled.resolve_map(mode, runs)
    program = compiled.build(agent, config.batch_size, dataset, resolved)
    keys = root_keys(jnp.arange(runs))
    states, totals = program.start(keys, stacked(config, [{}] * runs))

    step = jax.jit(functools.partial(train_step, agent, config.batch_size))
    one = agent.init(jax.random.key(0), config)
    compiled_step: Any = step.lower(one, keys[0], dataset).compile()
    flops, memory = compiled_step.cost_analysis()["flops"], compiled_step.memory_analysis()

    began = time.perf_counter()
    chunk = program.chunk.lower(states, totals, keys, dataset, jnp.int32(1)).compile()
    compile_seconds = time.perf_counter() - began

    def advance(count: int) -> None:
        nonlocal states, totals
        states, totals = jax.block_until_ready(chunk(states, totals, keys, dataset, jnp.int32(count)))

    updates = rate(advance, settings.seconds) * runs
    modes, shorter = agent.evaluations(config), settings.seconds / 2
    act_compile_seconds, action_seconds = measure_acting(agent, spec, one, shorter)
    best_seconds = measure_acting(agent, spec, one, shorter, "best_of_n")[1] if "best_of_n" in modes else action_seconds
    return {
        "agent": name,
        "size": size,
        "runs": runs,
        "map": resolved,
        "compile_seconds": compile_seconds,
        "updates_per_second": updates,
        "gflop_per_update": flops / 1e9,
        "gflops": flops * updates / 1e9,
        "act_compile_seconds": act_compile_seconds,
        "milliseconds_per_action": 1e3 * action_seconds,
        "milliseconds_per_action_as_configured": 1e3 * best_seconds,
        "megabytes_of_state": size_of(one) / 1e6,
        "megabytes_of_work": memory.temp_size_in_bytes / 1e6,
    }


def sized(name: str, size: str) -> Any:
    """Returns an agent's configuration with networks of a size, the critics' as the policy's."""
    usual = agents.default(name)
    own = {"critic.hidden_dims": ()} if "hidden_dims" in SIZES[size] and "critic.hidden_dims" in values(usual) else {}
    return put(usual, {**SIZES[size], **own})


def measure_acting(
    agent: Agent[Any], spec: Spec, state: TrainState[Any], seconds: float, mode: str = ""
) -> tuple[float, float]:
    """Returns the seconds to compile acting on one observation, and those of one action."""
    chosen = agent.evaluations(state.config)[mode] if mode else acting.by_itself(agent, state.config)
    return acting_times(agent, spec, agent.policy(state.replace(config=chosen)), seconds)


def online_session(name: str, size: str, env: str) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Returns functions that do a number of steps, each with an update: by flowrl's online loop, and by a plain one."""
    made = tasks.parse(env)
    spec, config = made.facts().spec, sized(name, size)
    agent, keys = agents.build(name, config, spec), jnp.stack([jax.random.key(0)])
    kind = agent.batch(config)
    if not isinstance(kind, Transitions):
        raise UserError(f"--online: {name} learns offline only; choose another --agents")
    options = Online(steps=MOST_COUNT, buffer_size=BUFFER)
    buffer = jax.eval_shape(functools.partial(replay.empty, spec, BUFFER, kind))
    program = compiled.build(agent, config.batch_size, None, "serial", buffer)
    acted = Environments(made.factory(), keys, 1)
    collector = Collector(agent, spec, program, acted, keys, options, kind)
    states, totals = program.start(keys, stacked(config, [{}]))

    def ours(count: int) -> None:
        nonlocal states, totals
        states, totals = jax.block_until_ready(collector.advance(states, totals, count))

    start = agent.init(jax.random.key(0), config)
    return ours, plain_loop(agent, made.factory()(), spec, start, kind, config.batch_size)


def plain_loop(
    agent: Agent[Any],
    env: SeededEpisodes,
    spec: Spec,
    state: TrainState[Any],
    kind: Transitions,
    batch_size: int,
) -> Callable[[int], None]:
    """Returns the usual single-file loop: act, step, store in numpy, sample in numpy, update."""
    rng, act = np.random.default_rng(0), jax.jit(agent.act, static_argnames="explore")
    update = jax.jit(lambda state, rows, key: agent.update(state, kind.complete(rows), key))
    shapes = {"observations": spec.observation, "actions": spec.action, "next_observations": spec.observation}
    stored = {name: np.zeros((BUFFER, *shape.shape), np.float32) for name, shape in shapes.items()}
    stored |= {name: np.zeros(BUFFER, np.float32) for name in ("rewards", "masks")}
    size = 0
    observation, _ = env.reset(seed=0)

    def advance(count: int) -> None:
        nonlocal state, size, observation
        for _ in range(count):
            key = jax.random.fold_in(jax.random.key(1), size)
            seen = np.asarray(observation, np.float32)
            action = np.asarray(act(agent.policy(state), {"observations": seen[None]}, key, explore=True))[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            row = (seen, action, np.asarray(observation, np.float32), reward, 1.0 - terminated)
            for name, value in zip(stored, row, strict=True):
                stored[name][size % BUFFER] = value
            size += 1
            rows = rng.integers(0, min(size, BUFFER), batch_size)
            state, _ = update(state, {name: array[rows] for name, array in stored.items()}, key)
            if terminated or truncated:
                observation, _ = env.reset(seed=size)
        jax.block_until_ready(state)

    return advance


def measure_online(name: str, size: str, settings: Settings) -> dict[str, Any]:
    """Measures both loops in turns, twice."""
    ours, plain = online_session(name, size, settings.online)
    for advance in (ours, plain):
        advance(20)  # compiles
    rates: dict[str, list[float]] = {"flowrl": [], "plain": []}
    for _ in range(2):
        rates["flowrl"].append(rate(ours, settings.seconds))
        rates["plain"].append(rate(plain, settings.seconds))
    means = {f"{loop_name}_steps_per_second": float(np.mean(values)) for loop_name, values in rates.items()}
    ratio = means["flowrl_steps_per_second"] / means["plain_steps_per_second"]
    return {"agent": name, "size": size, "environment": settings.online, **means, "ratio": ratio, "each": rates}


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings(), arguments, __doc__ or "")
    if settings is None:
        return 0
    sizes = _choices("sizes", settings.sizes, tuple(SIZES))
    names = _choices("agents", settings.agents, tuple(agents.names()))
    modes = _choices("maps", settings.maps, ("auto", "vmap", "serial"))
    if not all(part.isdigit() and int(part) > 0 for part in settings.runs.split(",")):
        raise UserError(f"--runs={settings.runs} is not a list of positive numbers; write for example --runs=1,4,16")
    if settings.online:
        found = [measure_online(name, size, settings) for size, name in itertools.product(sizes, names)]
        for result in found:
            print({key: value for key, value in result.items() if key != "each"})
        return _report(settings, arguments, {"results": found})
    dataset = synthetic_dataset(Spec.of_sizes(settings.observation_dim, settings.action_dim, settings.observation_dim))
    width = product_width()
    peaks = [matmul_flops(settings.seconds, width)]
    results = []
    counts = map(int, settings.runs.split(","))
    for size, name, runs, mode in itertools.product(sizes, names, counts, modes):
        results.append(measure(name, size, runs, mode, settings, dataset))
        print(_line(results[-1], max(peaks)))
    peaks.append(matmul_flops(settings.seconds, width))
    peak = max(peaks)
    print(f"{width}-wide products before and after: {peaks[0] / 1e9:.0f}, {peaks[1] / 1e9:.0f} GFLOP/s")
    numbers = {
        "matmul_width": width,
        "matmul_gflops": [each / 1e9 for each in peaks],
        "results": [result | {"share_of_peak": result["gflops"] * 1e9 / peak} for result in results],
    }
    return _report(settings, arguments, numbers)


def _report(settings: Settings, arguments: Sequence[str], numbers: dict[str, Any]) -> int:
    """Writes or prints the numbers with what made them."""
    report = {
        "command": " ".join(["python", "experiments/bench.py", *arguments[1:]]),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("jax", "jaxlib", "mujoco", "gymnasium"),
        **numbers,
    }
    if settings.out:
        logs.write_json(Path(settings.out), report)
    else:
        print(json.dumps(report))
    return 0


def _choices(flag: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Returns the parts of a list on the command line, all of them known."""
    parts = text.split(",")
    for part in parts:
        if part not in known:
            raise UserError(f"--{flag}={text}: unknown {part!r}; choose from {', '.join(known)}")
    return parts


def _line(result: dict[str, Any], peak: float) -> str:
    return (
        f"{result['agent']:>8} {result['size']:>5} × {result['runs']:<3}{result['map']:>6}  "
        f"compile {result['compile_seconds']:5.1f} s  {result['updates_per_second']:8.1f} updates/s  "
        f"{result['gflop_per_update']:6.2f} GFLOP/update  {100 * result['gflops'] * 1e9 / peak:4.0f} % of peak  "
        f"{result['milliseconds_per_action']:6.3f} ms/action ({result['milliseconds_per_action_as_configured']:.3f})  "
        f"{result['megabytes_of_state']:.0f} + {result['megabytes_of_work']:.0f} MB"
    )


if __name__ == "__main__":
    flags.run(main)
