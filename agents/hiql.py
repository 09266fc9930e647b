"""HIQL: hierarchical implicit Q-learning (Park et al. 2023, https://arxiv.org/abs/2307.11949), as in OGBench."""

from functools import partial

import jax

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.encoders import GoalRep, represented, represented_value
from flowrl.losses import GoalValue, goal_value_loss
from flowrl.networks import MLP, Spec, Value, ensemble, named, vector
from flowrl.optim import Stage, in_stages, polyak
from flowrl.policies import LEVELS, Levels, act_by_levels, both_levels, high_actor_loss, low_actor_loss
from flowrl.train_state import Batch, Metrics, TrainState


@config
class Config:
    """OGBench's defaults."""

    value: GoalValue = nested(GoalValue())
    value_goals: GoalMix = nested(GoalMix(p_trajectory=0.5, p_random=0.3, geometric=True))
    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    rep_dim: int = static(10, "Size of the goal representation.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    lagging_targets: bool = static(True, "Targets move toward the parameters before each step, as the authors' do.")
    low_actor_rep_grad: bool = static(False, "Whether the low-level policy also trains the representation.")
    low_alpha: float = traced(3.0, "Inverse temperature of the low-level policy's advantage weights.")
    high_alpha: float = traced(3.0, "Inverse temperature of the high-level policy's advantage weights.")
    subgoal_steps: int = traced(25, "Environment steps to a subgoal.", low=1)

    def problem(self, prefix: str) -> str:
        """Says where a policy is to train what stays."""
        return self.value.refusal(prefix, low_actor_rep_grad=self.low_actor_rep_grad)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Levels:
    """Builds the networks."""
    (s, _, g, _), rep, layers = spec.inputs(), vector(1, config.rep_dim), config.hidden_dims
    return Levels(**named(
        goal_rep=(GoalRep(layers, config.rep_dim), s, g),
        value=(ensemble(Value)(layers), s, rep),
        low_actor=(MLP(layers, spec.action_dim, final_scale=1e-2), s, rep),
        high_actor=(MLP(layers, config.rep_dim, final_scale=1e-2), s, g),
    ))  # fmt: skip


def update(nets: Levels, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses, or a stage's, at the same parameters, then the target value."""
    config = state.config
    policies = [partial(loss, represented_value, represented) for loss in (low_actor_loss, high_actor_loss)]
    values = Stage([partial(goal_value_loss, represented_value)], ("goal_rep", "value"))
    rates = dict.fromkeys(nets._fields, config.learning_rate)
    stages = values, Stage(policies, LEVELS)
    moved, metrics = in_stages(config.value.steps, nets, state, batch, key, stages, rates)
    toward = state if config.lagging_targets else moved
    return polyak(moved, toward.params, value=config.value.target_rate), metrics


make = Maker(
    networks, update, act_by_levels, targets=("value",), acting=both_levels,
    batch=lambda c: Goals(c.actor_goals, c.value_goals, c.discount, c.subgoal_steps, c.value.horizon),
)  # fmt: skip
