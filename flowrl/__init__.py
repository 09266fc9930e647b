"""flowrl: functional reinforcement learning with one-step flow policies, in JAX and Flax."""

__version__ = "0.1.0"
