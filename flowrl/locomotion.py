"""OGBench's directional locomotion tasks, on which the experts of its maze datasets are trained.

Importing this module registers them with Gymnasium. A direction is part of the observation and is drawn anew every 100
steps; the reward is the distance moved along it, for the humanoid weighted by how upright it stands.
"""

from typing import Any

import gymnasium

from flowrl.envs import LOCOMOTION


def ant(resample_interval: int = 100, **kwargs: Any) -> gymnasium.Env:
    """Makes the directional ant; a direction holds for `resample_interval` steps."""
    from ogbench.online_locomotion.ant import AntEnv
    from ogbench.online_locomotion.wrappers import GymXYWrapper

    return GymXYWrapper(AntEnv(**kwargs), resample_interval)


def humanoid(resample_interval: int = 100, **kwargs: Any) -> gymnasium.Env:
    """Makes the directional humanoid; a direction holds for `resample_interval` steps."""
    from ogbench.online_locomotion.humanoid import HumanoidEnv
    from ogbench.online_locomotion.wrappers import DMCHumanoidXYWrapper

    return DMCHumanoidXYWrapper(HumanoidEnv(**kwargs), resample_interval)


for _name, _maker in zip(LOCOMOTION, ("ant", "humanoid"), strict=True):
    gymnasium.register(_name, entry_point=f"{__name__}:{_maker}", max_episode_steps=1000)
