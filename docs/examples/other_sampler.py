"""A flowrl agent trained on batches from somebody else's sampler: OGBench's loader and plain numpy indexing.

python docs/examples/other_sampler.py FILE.npz [UPDATES], a dataset in OGBench's format
"""

import sys
from collections.abc import Callable

import jax
import numpy as np
import ogbench

from flowrl.agents import bc
from flowrl.networks import Spec

Batch = dict[str, np.ndarray]


def other_sampler(path: str, batch_size: int) -> Callable[[], Batch]:
    """Stands for any sampler that returns numpy arrays under OGBench's names."""
    data = ogbench.load_dataset(path)
    generator = np.random.default_rng(0)

    def sample() -> Batch:
        rows = generator.integers(len(data["observations"]), size=batch_size)
        batch = {name: array[rows] for name, array in data.items()}
        return {**batch, "actions_valid": np.ones_like(batch["actions"])}  # all count; beyond an episode's end none do

    return sample


def main(path: str, updates: int) -> tuple[float, float]:
    """Trains, and returns the first and the last loss."""
    sample = other_sampler(path, batch_size=256)
    batch = sample()
    config = bc.Config(hidden_dims=(256, 256))
    agent = bc.make(config, Spec.of_sizes(batch["observations"].shape[1], batch["actions"].shape[1]))
    state, update, losses = agent.init(jax.random.key(0), config), jax.jit(agent.update), []
    for step in range(updates):
        # An agent that bootstraps reads discounts too, γ · masks: agent.batch(config).complete(rows) adds them.
        state, metrics = update(state, sample(), jax.random.fold_in(jax.random.key(1), step))
        losses.append(float(metrics["actor/mse"]))
    print(f"squared error {losses[0]:.3f} -> {np.mean(losses[-20:]):.3f} after {updates} updates")
    return losses[0], float(np.mean(losses[-20:]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
