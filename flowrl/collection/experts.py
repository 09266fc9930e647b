"""Trained policies as numpy functions, for the processes that collect datasets.

An expert that walks through mazes is one .npz file: `kernel_0`, `bias_0`, … of an MLP with ReLU whose last layer gives
the mean and the log standard deviation of a squashed Gaussian; experiments/expert.py makes it. Where policies from
several stages of a training are needed, each array has a leading axis for them, and `steps` and `returns` say which
they are; experiments/snapshots.py makes these. Beside each lies a .json file that says how it was trained.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError

BODIES = {"ant": "online-ant-xy-v0", "humanoid": "online-humanoid-xy-v0", "antball": "online-antball-ends-v0"}
"""What an expert for mazes can be of, and the task it is trained on."""
LOG_STD_RANGE = (-5.0, 2.0)
"""As in flowrl.policies, which would import JAX into processes that only collect."""

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Kernels `[I, O]` and biases `[O]`."""


class Snapshots(NamedTuple):
    """Policies from several stages of one training.

    Attributes:
        policies: In the order of training, S of them.
        steps: Environment steps done then, int `[S]`.
        returns: Mean return of an episode of samples `[S]`.
    """

    policies: tuple[Layers, ...]
    steps: np.ndarray
    returns: np.ndarray


_PARTS = ("kernel", "bias")


def of_actor(actor: Mapping[str, Any], run: int = 0) -> Layers:
    """Returns the layers of one run's SAC actor, as a checkpoint holds it.

    Args:
        actor: The parameters, each with a leading axis for runs.
        run: Which run.
    """
    layers = actor["params"]["MLP_0"]
    names = ["SplitDense_0", *sorted(name for name in layers if name.startswith("Dense"))]
    return tuple((np.asarray(layers[name]["kernel"][run]), np.asarray(layers[name]["bias"][run])) for name in names)


def named(layers: Layers) -> dict[str, np.ndarray]:
    """Returns layers as the arrays of a file."""
    return {f"{part}_{i}": array for i, pair in enumerate(layers) for part, array in zip(_PARTS, pair, strict=True)}


def read(file_path: Path) -> Layers:
    """Returns the layers of an expert's file."""
    with np.load(file_path, allow_pickle=False) as file:
        return _layers(dict(file))


def _layers(arrays: Mapping[str, np.ndarray]) -> Layers:
    depth = sum(name.startswith("kernel_") for name in arrays)
    return tuple((arrays[f"kernel_{i}"], arrays[f"bias_{i}"]) for i in range(depth))


@functools.cache
def snapshots(body: str) -> Snapshots:
    """Returns the snapshots that are shipped for a body.

    Raises:
        UserError: None are.
    """
    with np.load(path(body), allow_pickle=False) as file:
        arrays = dict(file)
    steps, returns = arrays.pop("steps"), arrays.pop("returns")
    each = ({name: array[i] for name, array in arrays.items()} for i in range(len(steps)))
    return Snapshots(tuple(map(_layers, each)), steps, returns)


def path(body: str) -> Path:
    """Returns the file of the expert that is shipped for a body.

    Raises:
        UserError: None is.
    """
    found = Path(str(resources.files(__package__) / "experts" / f"{body}.npz"))
    if not found.exists():
        raise UserError(
            f"flowrl ships no expert for {body} yet; train one with experiments/"
            f"{'expert' if body in BODIES else 'snapshots'}.py --body={body}, or give a dataset with --data=PATH"
        )
    return found


@functools.cache
def shipped(body: str) -> Layers:
    """Returns the expert that is shipped for a body.

    Raises:
        UserError: None is.
    """
    return read(path(body))


def act(layers: Layers, observation: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Returns an expert's action for walking in a direction.

    Args:
        layers: The expert.
        observation: Of the maze environment; its first two numbers are the position in the maze, which the expert does
            not see.
        direction: Unit vector `[2]`.

    Returns:
        The policy's mode `[A]`, in (−1, 1).
    """
    return mode(layers, np.concatenate([observation[2:], direction]))


def mode(layers: Layers, observation: np.ndarray) -> np.ndarray:
    """Returns the mode of a policy's actions `[A]`, in (−1, 1), for what it observes `[D]`."""
    return np.tanh(_means_and_log_stds(layers, observation)[0])


def sample(layers: Layers, observation: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns a sample of a policy's actions `[A]`, in (−1, 1), for what it observes `[D]`."""
    means, log_stds = _means_and_log_stds(layers, observation)
    stds = np.exp(np.clip(log_stds, *LOG_STD_RANGE))
    return np.tanh(means + stds * generator.standard_normal(len(means)))


def _means_and_log_stds(layers: Layers, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = inputs.astype(np.float32)
    for kernel, bias in layers[:-1]:
        x = np.maximum(x @ kernel + bias, 0.0)
    kernel, bias = layers[-1]
    outputs = x @ kernel + bias
    return outputs[: len(bias) // 2], outputs[len(bias) // 2 :]


def walk(body: str, observation: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Returns the action of the expert shipped for `body`, as `act`."""
    return act(shipped(body), observation, direction)
