"""What runs come to: curves, comparisons, figures; without JAX or a simulator."""
