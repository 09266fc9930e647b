"""Makes a file of transitions for `--data`: Pendulum swung up by hand-written control with more or less noise.

python docs/examples/own_data.py pendulum.npz
python experiments/main.py --agent=sscp --env=Pendulum-v1 --data=pendulum.npz --preset=quick
"""

import sys

import gymnasium
import numpy as np


def control(observation: np.ndarray) -> float:
    """Pumps energy into the swinging pendulum, and holds it once it is nearly upright."""
    cosine, sine, velocity = observation
    if cosine > 0.9:
        return float(-8 * np.arctan2(sine, cosine) - 2 * velocity)
    missing = 15 - (velocity**2 / 2 + 15 * cosine)  # of the energy at rest on top, in units of m l² / 3
    return float(np.sign(velocity or 1.0) * np.sign(missing) * 2)


def collect(episodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns transitions; each episode has its own share of random actions, from none to all."""
    rng = np.random.default_rng(seed)
    env = gymnasium.make("Pendulum-v1")
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    rows: dict[str, list] = {name: [] for name in names}
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        share, ended = rng.uniform(), False
        while not ended:
            torque = rng.uniform(-2, 2) if rng.uniform() < share else control(observation) + rng.normal(0, 0.3)
            action = np.clip([torque], -2, 2).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(action)
            for name, value in zip(names, (observation, action, reward, after, terminated, truncated), strict=True):
                rows[name].append(value)
            observation, ended = after, terminated or truncated
    arrays = {name: np.array(values) for name, values in rows.items()}
    return {name: values.astype(bool if name in names[4:] else np.float32) for name, values in arrays.items()}


if __name__ == "__main__":
    arrays = collect(episodes=int(sys.argv[2]) if len(sys.argv) > 2 else 500)
    np.savez(sys.argv[1], **arrays)
    returns = arrays["rewards"].reshape(-1, 200).sum(axis=1)
    print(f"{len(returns)} episodes; returns {np.percentile(returns, [5, 50, 95]).round()} (5, 50 and 95 %)")
