"""The folder of a run on disk: its files, their formats and what they say; without JAX or a simulator."""
