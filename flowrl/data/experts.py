"""Trained locomotion experts as numpy functions, for the processes that collect datasets.

An expert is one .npz file: `kernel_0`, `bias_0`, … of an MLP with ReLU whose last layer gives the mean and the log
standard deviation of a squashed Gaussian. Beside it lies a .json file that says how it was trained and what it does;
experiments/expert.py makes both.
"""

import functools
from importlib import resources
from pathlib import Path

import numpy as np

from flowrl.errors import UserError

BODIES = ("ant", "humanoid")
"""What an expert can be of; which of them are shipped, `load` finds out."""


Layers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Kernels `[I, O]` and biases `[O]`."""


def read(file_path: Path) -> Layers:
    """Returns the layers of an expert's file."""
    with np.load(file_path, allow_pickle=False) as file:
        return tuple((file[f"kernel_{i}"], file[f"bias_{i}"]) for i in range(len(file.files) // 2))


def path(body: str) -> Path:
    """Returns the file of the expert that is shipped for a body.

    Raises:
        UserError: None is.
    """
    found = Path(str(resources.files(__package__) / "experts" / f"{body}.npz"))
    if not found.exists():
        raise UserError(
            f"flowrl ships no expert for {body} yet; train one with experiments/expert.py --body={body}, or give a "
            "dataset with --data=PATH"
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
    x = np.concatenate([observation[2:], direction]).astype(np.float32)
    for kernel, bias in layers[:-1]:
        x = np.maximum(x @ kernel + bias, 0.0)
    kernel, bias = layers[-1]
    return np.tanh((x @ kernel + bias)[: len(bias) // 2])


def walk(body: str, observation: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Returns the action of the expert shipped for `body`, as `act`."""
    return act(shipped(body), observation, direction)
