"""The algorithms, one module each: `flowrl.agents.<name>`."""
