"""How each agent is given its authors' inputs: one module `<agent>.py` with `MAPPING`."""
