"""Runs an agent on the authors' inputs in float64 and measures how far its numbers are from theirs."""

import contextlib
import fnmatch
import functools
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from flowrl import agents
from flowrl.agent import Agent
from flowrl.config import flatten, put, values
from flowrl.networks import Spec
from flowrl.optim import ADAM
from flowrl.train_state import Batch, Metrics, TrainState

from .feeding import fed
from .mapping import AgentMapping, Arrays, Way

HERE = Path(__file__).parent
PARTS = ("losses", "gradients", "after one", "at the end", "actions")
RENAMED = {"mc_returns": "returns"}
"""Fields of a batch that have another name here."""
BETA = 0.9
"""Decay of Adam's first moment, from which gradients are read."""


class File:
    """One file of the authors' numbers: `meta`, and arrays by key."""

    def __init__(self, name: str) -> None:
        with np.load(HERE / "files" / f"{name}.npz", allow_pickle=False) as data:
            self.arrays: Arrays = {key: data[key] for key in data.files if key != "meta"}
            self.meta: dict[str, Any] = json.loads(str(data["meta"]))
        self.name, self.subject = name, self.meta.get("agent", name.split("__")[0])
        self.updates = max(int(key[5]) for key in self.arrays if key.startswith("after") and key[5].isdigit())

    @property
    def mapping(self) -> AgentMapping:
        """How its agent is compared."""
        return mapping_of(self.subject)

    @property
    def agent(self) -> str:
        """The agent's name here."""
        return self.mapping.agent or self.subject

    def tree(self, prefix: str) -> Arrays:
        """Returns the arrays below `prefix` by the rest of their keys."""
        return {key[len(prefix) + 1 :]: value for key, value in self.arrays.items() if key.startswith(f"{prefix}/")}

    def draws(self, prefix: str) -> Arrays:
        """Returns the draws below `prefix` by their role."""
        return {key.split("_", 1)[1]: value for key, value in self.tree(prefix).items()}

    def gradients(self) -> Arrays:
        """Returns the gradients of the total loss, or each network's of its own loss."""
        return {
            key.split("/", 1)[1]: value
            for key, value in self.arrays.items()
            if key.split("/")[0] == "grads" or key.startswith("grads_")
        }

    def losses(self, update: int) -> Arrays:
        """Returns the losses and metrics of an update, from 1, by the authors' names; of some there are none."""
        return self.tree("loss" if update == 1 else f"loss_u{update}")


def names() -> list[str]:
    """Returns the files of the agents that have a mapping."""
    return sorted(
        path.stem
        for path in (HERE / "files").glob("*.npz")
        if (HERE / "mappings" / f"{path.stem.split('__')[0]}.py").exists()
    )


def mapping_of(subject: str) -> AgentMapping:
    """Imports how the agent of some files is compared."""
    return importlib.import_module(f".mappings.{subject}", __package__).MAPPING


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Within, everything is computed in float64."""
    settings = {"jax_enable_x64": True, "jax_default_matmul_precision": "highest"}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


class Case:
    """An agent here with a file's inputs."""

    def __init__(self, file: File) -> None:
        self.file, self.mapping = file, file.mapping
        given = {RENAMED.get(name, name): value for name, value in file.tree("batch").items()}
        self.sizes = [given["observations"].shape[-1], given["actions"].shape[-1]]
        self.sizes += [value.shape[-1] for name, value in given.items() if name.endswith("_goals")][:1]
        self.batch = self.mapping.batch(given, file.meta["config"])
        if "masks" in self.batch:
            discount, masks = values(self.agent()[1]).get("discount", 1.0), self.batch["masks"]
            valid = {"valid": np.ones_like(masks), "actions_valid": np.ones_like(self.batch["actions"])}
            self.batch = {"discounts": discount * masks, **valid} | self.batch

    def agent(self, **changes: Any) -> tuple[Agent, Any]:
        """Returns the agent with the authors' settings, and its configuration."""
        told = self.mapping.config({**self.file.meta["config"], "file": self.file.name})
        config = put(agents.default(self.file.agent), {**told, **changes})
        return agents.load(self.file.agent).make(config, Spec.of_sizes(*self.sizes)), config

    def tree(self, prefix: str) -> Arrays:
        """Returns their arrays below `prefix`, but for networks that there are none of here."""
        arrays = self.present(self.file.tree(prefix))
        return self.present(arrays, "targets/") if prefix.endswith("targets") else arrays

    def present(self, arrays: Arrays, within: str = "") -> Arrays:
        """Returns arrays of networks that there are here too."""
        gone = tuple(f"{name}/" for name in self.mapping.absent)
        return {key: value for key, value in arrays.items() if not f"{within}{key}/".startswith(gone)}

    def ours(self, arrays: Arrays, like: Mapping[str, Any]) -> Any:
        """Returns a tree of parameters, those of the networks in `like`, made of the authors' arrays."""
        shapes = flax.traverse_util.flatten_dict(dict(like), sep="/")
        leaves = {leaf.ours: leaf for leaf in self.mapping.leaves}
        assert set(shapes) <= set(leaves), f"arrays without a mapping: {sorted(set(shapes) - set(leaves))}"
        used = {name for path in shapes for name in leaves[path].theirs}
        assert set(arrays) == used, f"of one side only: {sorted(set(arrays) ^ used)}"
        made = {path: leaves[path].join(*(arrays[name] for name in leaves[path].theirs)) for path in shapes}
        wrong = {
            path: (made[path].shape, shapes[path].shape) for path in shapes if made[path].shape != shapes[path].shape
        }
        assert not wrong, f"shapes there and here: {wrong}"
        return flax.traverse_util.unflatten_dict(made, sep="/")

    def slow(self, like: Mapping[str, Any]) -> Any:
        """Returns those of the slow copies in `like` that the file has: targets, and what is frozen."""
        given = self.tree("targets") | self.tree("frozen")
        known = {leaf.ours.split("/")[0] for leaf in self.mapping.leaves if given.keys() & set(leaf.theirs)}
        return self.ours(given, {name: network for name, network in like.items() if name in known})

    def theirs(self, tree: Mapping[str, Any]) -> Arrays:
        """Returns parameters or gradients under the authors' names."""
        flat, arrays = flax.traverse_util.flatten_dict(dict(tree), sep="/"), {}
        for leaf in self.mapping.leaves:
            if leaf.ours in flat:
                arrays |= zip(leaf.theirs, leaf.split(np.asarray(flat[leaf.ours])), strict=True)
        return arrays

    def state(self, agent: Agent, config: Any) -> TrainState:
        """Returns the state with the file's parameters and targets, and an optimizer that has not begun.

        Slow copies that the file has none of are as the trained networks.
        """
        state = jax.eval_shape(agent.init, jax.random.key(0), config)
        traced = {entry.name: np.asarray(entry.value, entry.kind) for entry in flatten(config) if entry.traced}
        params = self.ours(self.tree("params"), state.params)
        targets = {name: params[name] for name in state.target_params} | self.slow(state.target_params)
        moments = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(_moments, params))
        state = state.replace(params=params, target_params=targets, opt_state=moments, step=np.int32(0))
        state = state.replace(config=put(config, traced))
        return self.mapping.prepare(state, self.file)

    def actions(self, prefix: str, way: Way) -> jax.Array:
        """Acts with the parameters before the first update."""
        agent, config = self.agent(**way.config)
        state, file = self.state(agent, config), self.file
        observations = file.arrays["act/observations"]
        inputs = {"observations": observations}
        if "act/goals" in file.arrays:
            inputs["goals"] = file.arrays["act/goals"]
        drawn = file.draws(f"{prefix.split('/')[0]}/draws") or file.draws("act/draws")
        variant = put(state.config, way.evaluation(agent.evaluations(config)))

        def act(state: TrainState, drawn: Arrays) -> jax.Array:
            with fed(way.draws, drawn, real=self.mapping.eager) as key:
                if way.call is not None:
                    return way.call(config, state, observations, key)
                return agent.act(agent.policy(state.replace(config=variant)), inputs, key, explore=way.explore)

        return self.program(act, state, drawn)(state, drawn)

    def updates(self, agent: Agent, state: TrainState) -> tuple[list[TrainState], list[Metrics]]:
        """Returns the states before and after all updates, and the metrics of these."""
        states, logs, drawn = [state], [], self.mapping.draws
        order = drawn(self.file.name) if callable(drawn) else drawn

        def update(state: TrainState, batch: Batch, drawn: Arrays) -> tuple[TrainState, Metrics]:
            with fed(order, drawn, real=self.mapping.eager) as key:
                return agent.update(state, batch, key)

        program = self.program(update, state, self.batch, self.file.draws("draws"))
        for number in range(1, self.file.updates + 1):
            drawn = self.file.draws("draws" if number == 1 else f"draws_u{number}")
            state, metrics = program(state, self.batch, drawn)
            states.append(state)
            logs.append(metrics)
        return states, logs

    def program(self, function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
        """Compiles, unless keys are real; in haste, since what runs three times need not run fast."""
        if self.mapping.eager:
            return function
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        return jax.jit(function).lower(*arguments).compile(compiler_options=options)


def _moments(params: Any) -> Any:
    return {name: ADAM.init(params[name]) for name in params}


def gradients_of(state: TrainState) -> dict[str, Any]:
    """Returns the gradients that Adam met, each network's at all of its steps so far, from its first moments."""
    grads = {}
    for name, moments in state.opt_state.items():
        steps = int(moments.count)
        if steps:
            grads[name] = jax.tree.map(lambda m, steps=steps: np.asarray(m) / (1 - BETA**steps), moments.mu)
    return grads


def distance(ours: Any, theirs: np.ndarray) -> float:
    """Returns the largest difference relative to the largest entry."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, f"shape {ours.shape} where theirs is {theirs.shape}"
    assert ours.dtype == np.float64 or theirs.dtype != np.float64, f"computed in {ours.dtype}"
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300)) if np.any(ours != theirs) else 0.0


def entry(arrays: Arrays, key: str) -> np.ndarray:
    """Returns an array by the authors' key, or the sum that `name@sum0` and the like stand for."""
    name, _, reduction = key.partition("@")
    array = arrays[name]
    if not reduction:
        return array
    values = array**2 if reduction.startswith("squares") else array
    return values.sum(axis=int(reduction[-1]))


class Report(dict[str, dict[str, float]]):
    """For each of `PARTS`, the relative difference by the authors' key."""

    def worst(self, part: str) -> float:
        """Returns the largest difference of a part."""
        return max(self[part].values(), default=float("nan"))


@functools.cache
def measure(name: str) -> Report:
    """Runs the agent of a file on its inputs."""
    with float64():
        return _measure(Case(File(name)))


def _measure(case: Case) -> Report:
    file, mapping = case.file, case.mapping
    report = Report({part: {} for part in PARTS})
    agent, config = case.agent()
    states, logs = case.updates(agent, case.state(agent, config))

    for number, log in enumerate(logs, 1):
        theirs = file.losses(number)
        for key, ours in mapping.losses.items():
            if theirs.keys() >= set(terms := key.split(" + ")):
                value = np.asarray(sum(theirs[term] for term in terms))
                report["losses"][f"{key} {number}"] = distance(log[ours] if isinstance(ours, str) else ours(log), value)
    for key, read in mapping.extras.items():
        report["losses"][key] = distance(read(states, logs), file.arrays[key])
    grads = case.theirs(gradients_of(states[1]))
    met = mapping.met(case.present(file.gradients()))
    report["gradients"] = {key: distance(entry(grads, key), value) for key, value in met.items()}
    for part, number in (("after one", 1), ("at the end", file.updates)):
        prefix, state = f"after{number}", states[number]
        for tree, own in ((prefix, state.params), (f"{prefix}_targets", state.target_params)):
            ours = case.theirs(own)
            report[part] |= {f"{tree}/{key}": distance(entry(ours, key), v) for key, v in case.tree(tree).items()}
    for prefix, way in mapping.ways.items():
        theirs = file.arrays[prefix if "/" in prefix else f"{prefix}/actions"]
        report["actions"][prefix] = distance(case.actions(prefix, way).reshape(theirs.shape), theirs)
    return report


def unexplained(name: str) -> list[str]:
    """Returns the numbers of a file that are neither compared nor left out with a reason."""
    file = File(name)
    mapping = file.mapping
    known = (
        {f"loss/{name}" for key in mapping.losses for name in key.split(" + ")}
        | set(mapping.extras)
        | {way if "/" in way else f"{way}/actions" for way in mapping.ways}
    )
    results = [key for key in file.arrays if key.startswith(("loss/", "extras/", "state_after", "act"))]
    results = [key for key in results if not key.endswith(("observations", "goals")) and "/draws/" not in key]
    kept = [key for key in results if key not in known]
    return [key for key in kept if not any(fnmatch.fnmatchcase(key, pattern) for pattern in mapping.left_out)]
