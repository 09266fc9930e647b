"""Environments: made, shown as vectors, every episode fixed by its seed, alone or many in processes; and filmed."""
