"""What the authors' code computes, file by file, and what the agents here compute on the same inputs.

Each of `files/*.npz` holds one agent's parameters, batch and random draws, and the losses, gradients, parameters after
one and after three updates and actions that its authors' code makes of them in float64; `meta` names repository and
commit.
`mappings/<agent>.py` says how the agent here is given these inputs: names, roles of draws, settings.
"""
