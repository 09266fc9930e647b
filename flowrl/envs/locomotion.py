"""OGBench's locomotion tasks, on which the experts of its maze datasets are trained.

Importing this module registers them with Gymnasium. For ant and humanoid a direction is part of the observation and is
drawn anew every 100 steps; the reward is the distance moved along it, for the humanoid weighted by how upright it
stands. The ant with a ball is rewarded for coming nearer to the ball, and the ball to its goal.
"""

import os
import sys
from typing import Any

import gymnasium

from flowrl.errors import UserError

NAMES = ("online-ant-xy-v0", "online-humanoid-xy-v0", "online-antball-ends-v0")
"""What they are called."""


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


class EndsForGood(gymnasium.Wrapper):
    """Calls an episode's last step by a limit of time a termination: nothing can be earned afterwards."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


def antball(steps: int = 200, **kwargs: Any) -> gymnasium.Env:
    """Makes the ant with a ball, whose episodes end for good after 200 steps, as OGBench trains it.

    Making it draws a picture, which needs OpenGL: set MUJOCO_GL=egl or osmesa where there is no display.
    """
    from ogbench.online_locomotion.ant_ball import AntBallEnv

    try:
        env = AntBallEnv(render_mode="rgb_array", **kwargs)
    except Exception as error:  # of any kind, from as many libraries as there are platforms
        sys.unraisablehook = lambda _: None  # its half-made camera complains as it goes
        reason = " ".join(str(error).split())
        raise UserError(
            f"antball draws a picture when it is made, and OpenGL cannot be used here with MUJOCO_GL="
            f"{os.environ.get('MUJOCO_GL', '')} ({reason}); set it to egl or osmesa, and install that library"
        ) from error
    return EndsForGood(gymnasium.wrappers.TimeLimit(env, steps))


for _name, _maker in zip(NAMES, ("ant", "humanoid", "antball"), strict=True):
    _limit = None if _maker == "antball" else 1000
    gymnasium.register(_name, entry_point=f"{__name__}:{_maker}", max_episode_steps=_limit)
