"""Faults that the tests must notice: one small change each, and the tests that must fail under it."""

from typing import NamedTuple

_LOSSES, _NETWORKS, _GOALS, _AGENTS = (f"tests/test_{name}.py" for name in ("losses", "networks", "goals", "agents"))


class Mutation(NamedTuple):
    """One fault.

    Attributes:
        path: File, from the repository's root.
        old: Text that occurs exactly once in it.
        new: What replaces it.
        tests: File of the tests that must catch it.
        select: Which of them, as for `pytest -k`.
    """

    path: str
    old: str
    new: str
    tests: str
    select: str


_REFERENCES = "test_losses_and_gradients_equal_their_references"
_STEP = "test_a_step_is_adam"
_ROUTES = "test_gradients_reach_the_right_networks"
_TRAIN, _DATASET, _RELABEL = "flowrl/train_state.py", "flowrl/data/dataset.py", "flowrl/data/goals.py"
_MODULES = "flowrl/networks.py"
_FLOWS, _CRITICS, _ACTS, _OFFLINE, _TRAINING = (
    f"tests/test_{name}.py" for name in ("flow", "offline_losses", "acting", "offline_agents", "offline_training")
)
_FLOW, _ACTING = "flowrl/flow.py", "flowrl/acting.py"
_ONE_STEP, _AVERAGE, _DISTILLED, _CLONING = (f"agents/{name}.py" for name in ("sscp", "ofql", "fql", "bc"))
_SSCP, _HIQL, _GCIVL, _GCBC = (f"agents/{name}.py" for name in ("gc_sscp", "hiql", "gcivl", "gcbc"))


_REPLAY, _ONLINE = "flowrl/data/replay.py", "flowrl/online.py"
_BUFFER, _ACTED, _LEARNT = (f"tests/test_{name}.py" for name in ("replay", "online", "online_agents"))
_MIRROR = "tests/test_mirror_descent.py"
_STATS, _COMPARISONS = "tests/test_stats.py", "tests/test_comparisons.py"
_SETS = "tests/test_mujoco_sets.py"
_SWEEPS, _SWEPT, _LOOP = "flowrl/sweeps.py", "tests/test_sweep.py", "tests/test_loop.py"
_WORKERS, _EVALUATED = "flowrl/workers.py", "tests/test_evaluate.py"
_SIGNALS, _FLAGS, _CONFIG, _SETTINGS, _ESTIMATES, _SPREAD_OVER = (
    f"flowrl/{name}.py" for name in ("signals", "flags", "config", "settings", "estimates", "devices")
)
_BAD_INPUT, _LIMITS, _TERMINAL = (f"tests/test_{name}.py" for name in ("cli", "limits", "terminal"))
_KILLED, _SIGNALLED = "killed_amid", "tests/test_signals.py"
_SINKS, _COPIES, _FILMED = "flowrl/sinks.py", "tests/test_sinks.py", "tests/test_videos.py"
_DIFFUSION = "tests/test_diffusion.py"
_DEVICES, _SPREAD = "flowrl/devices.py", "tests/test_devices.py"
_CALIBRATED, _CAL_QL, _SUMS = "agents/cal_ql.py", "tests/test_cal_ql.py", "tests/test_returns.py"
_CRITIC_STEP = """\
    state, critic_metrics = descend(
        state, lambda params: critic_loss(networks, config, params, state, batch, critic_key), ("critic",)
    )
"""


def _reference(case: str) -> str:
    return f"{_REFERENCES} and {case}"


MUTATIONS = (
    # losses.py
    Mutation("flowrl/losses.py", "(advantages < 0)", "(advantages <= 0)", _LOSSES, "expectile_weight"),
    Mutation("flowrl/losses.py", "(advantages < 0)", "(advantages > 0)", _LOSSES, "goal_value_loss"),
    Mutation("flowrl/losses.py", "jnp.exp(alpha * advantages)", "jnp.exp(-alpha * advantages)", _LOSSES, "awr"),
    Mutation(
        "flowrl/losses.py",
        "jax.lax.stop_gradient(jnp.minimum(jnp.exp(alpha * advantages), maximum))",
        "jnp.minimum(jnp.exp(alpha * advantages), maximum)",
        _LOSSES,
        "awr_weight_gives_no_gradient",
    ),
    Mutation("flowrl/losses.py", "next_values.min(axis=0)", "next_values.mean(axis=0)", _LOSSES, "goal_value_loss"),
    Mutation("flowrl/losses.py", "target_values.mean(axis=0)", "values.mean(axis=0)", _LOSSES, "test_goal_value_loss"),
    Mutation(
        "flowrl/losses.py",
        'hyper["discount"] * batch["masks"]',
        'hyper["discount"] * jnp.ones_like(batch["masks"])',
        _LOSSES,
        "test_goal_value_loss",
    ),
    Mutation(
        "flowrl/losses.py",
        "discounts * next_values - values",
        "discounts * next_values.min(axis=0) - values",
        _LOSSES,
        "each_head_has_its_own_target",
    ),
    Mutation(
        "flowrl/losses.py",
        '{**state.params, "value": state.target_params["value"]}',
        '{**params, "value": state.target_params["value"]}',
        _LOSSES,
        "gradients_of_goal_value_loss",
    ),
    Mutation("flowrl/losses.py", "errors**2).mean(axis=-1).sum()", "errors**2).mean()", _LOSSES, "goal_value_loss"),
    Mutation("flowrl/losses.py", "-0.5 * jnp.sum(", "-0.5 * jnp.mean(", _LOSSES, "log_prob"),
    # optim.py and train_state.py
    Mutation("flowrl/optim.py", "-rate * d", "rate * d", _AGENTS, f"{_STEP} and gcbc"),
    Mutation(
        "flowrl/optim.py",
        "incremental_update(state.params[name], state.target_params[name], rate)",
        "incremental_update(state.target_params[name], state.params[name], rate)",
        _AGENTS,
        f"{_STEP} and gcivl",
    ),
    Mutation(
        "flowrl/optim.py",
        "direction, opt_state[name] = ",
        "direction, _ = ",
        _AGENTS,
        f"{_STEP} and gcbc",
    ),
    Mutation(_TRAIN, "jax.tree.map(jnp.copy, params[name])", "params[name]", _AGENTS, "starts_with_copies and gcivl"),
    Mutation(_TRAIN, "optax.scale_by_adam()", "optax.scale_by_adam(b2=0.99)", _AGENTS, "descend_takes"),
    # dataset.py
    Mutation(_DATASET, "(last_rows - 1).astype", "last_rows.astype", _GOALS, "transitions_and_ends"),
    Mutation(_DATASET, "prepend=-1", "prepend=0", _GOALS, "transitions_and_ends"),
    Mutation(_DATASET, "np.flatnonzero(~terminals)", "np.arange(len(terminals))", _GOALS, "transitions_and_ends"),
    Mutation(_DATASET, '["observations"][rows + 1]', '["observations"][rows]', _GOALS, "transitions_and_ends"),
    Mutation(
        _DATASET, "0, len(dataset.transitions))", "0, len(dataset.transitions) - 1)", _GOALS, "random_rows_are_uniform"
    ),
    # goals.py
    Mutation(_RELABEL, "jnp.ceil(jnp.log1p", "jnp.floor(jnp.log1p", _GOALS, "geometric_offsets_follow"),
    Mutation(_RELABEL, "jnp.minimum(jnp.log(discount), -1e-15)", "jnp.log(discount)", _GOALS, "at_the_extremes"),
    Mutation(_RELABEL, "jnp.minimum(rows + 1, ends)", "rows", _GOALS, "actor_goals_and_high_targets"),
    Mutation(
        _RELABEL,
        "return ends - jnp.round(jax.random.uniform(key, rows.shape) * spans).astype(jnp.int32)",
        "return jnp.round(ends - jax.random.uniform(key, rows.shape) * spans).astype(jnp.int32)",
        _GOALS,
        "beyond_float32",
    ),
    Mutation(
        _RELABEL,
        "jnp.minimum(rows + geometric_offsets(key, discount, rows.shape), ends)",
        "rows + geometric_offsets(key, discount, rows.shape)",
        _GOALS,
        "test_value_goals or keep_to_their_episodes",
    ),
    Mutation(_RELABEL, "jnp.round(jax.random.uniform", "jnp.floor(jax.random.uniform", _GOALS, "actor_goals_and_high"),
    Mutation(_RELABEL, "uniform < p_random + p_trajectory", "uniform < p_trajectory", _GOALS, "test_value_goals"),
    Mutation(
        _RELABEL, "jnp.where(reached, 0.0, -1.0)", "jnp.where(reached, -1.0, 0.0)", _GOALS, "keep_to_their_episodes"
    ),
    Mutation(
        _RELABEL,
        "jnp.where(goals.is_random, dataset.ends[rows], goals.rows)",
        "dataset.ends[rows]",
        _GOALS,
        "actor_goals_and_high_targets",
    ),
    Mutation(
        _RELABEL,
        "jnp.where(goals.is_random, dataset.ends[rows], goals.rows)",
        "goals.rows",
        _GOALS,
        "actor_goals_and_high_targets",
    ),
    Mutation(
        _RELABEL,
        'ahead = jnp.minimum(rows + hyper["subgoal_steps"], dataset.ends[rows])',
        'ahead = rows + hyper["subgoal_steps"]',
        _GOALS,
        "keep_to_their_episodes",
    ),
    Mutation(
        _RELABEL,
        "kind_key, trajectory_key, random_key = jax.random.split(key, 3)",
        "kind_key = trajectory_key = random_key = key",
        _GOALS,
        "test_value_goals or kind_of_goal",
    ),
    # networks.py
    Mutation(_MODULES, "n / (n + 2.0)", "n / (n + 1.0)", _NETWORKS, "mish"),
    Mutation(_MODULES, "jnp.minimum(x, 20.0)", "jnp.minimum(x, 2.0)", _NETWORKS, "mish"),
    Mutation(_MODULES, "sum(sizes[:i])", "sum(sizes[i:])", _NETWORKS, "split_dense"),
    Mutation(_MODULES, " * jnp.sqrt(x.shape[-1])", "", _NETWORKS, "length_normalize"),
    Mutation(
        _MODULES, "[jnp.cos(angles), jnp.sin(angles)]", "[jnp.sin(angles), jnp.sin(angles)]", _NETWORKS, "fourier"
    ),
    Mutation(_MODULES, 'split_rngs={"params": True}', 'split_rngs={"params": False}', _NETWORKS, "ensemble"),
    Mutation(
        _MODULES, 'name="second")(features(second))', 'name="second")(features(first))', _NETWORKS, "reads_all_inputs"
    ),
    Mutation(
        _MODULES,
        "[jnp.sin(angles), jnp.cos(angles)]",
        "[jnp.sin(angles), jnp.sin(angles)]",
        _TRAINING,
        "sinusoidal_features",
    ),
    Mutation(_MODULES, 'mode == "explore"', 'mode == "eval"', _AGENTS, "gaussian_policies and gcbc"),
    # gcbc
    Mutation(_GCBC, "loss = -unit", "loss = unit", _AGENTS, _reference("gcbc")),
    Mutation(_GCBC, "key, mode), -1.0, 1.0)", "key, mode), -1.0, 2.0)", _AGENTS, "stay_in_bounds and gcbc"),
    # gcivl
    Mutation(
        _GCIVL, "awr_weight(next_values - values", "awr_weight(values - next_values", _AGENTS, _reference("gcivl-actor")
    ),
    Mutation(_GCIVL, "return value_loss + policy_loss,", "return value_loss,", _AGENTS, f"{_STEP} and gcivl"),
    Mutation(
        _GCIVL,
        'v(networks, state.params, batch["observations"], goals)',
        'v(networks, state.target_params, batch["observations"], goals)',
        _AGENTS,
        _reference("gcivl-actor"),
    ),
    # hiql
    Mutation(
        _HIQL, "params if config.low_actor_rep_grad else state.params", "params", _AGENTS, f"{_ROUTES} and hiql-low"
    ),
    Mutation(_HIQL, 'state.hyper["high_alpha"]', 'state.hyper["low_alpha"]', _AGENTS, _reference("hiql-high")),
    Mutation(
        _HIQL,
        'target_reps = represent(networks, state.params, batch["observations"], targets)',
        'target_reps = represent(networks, params, batch["observations"], targets)',
        _AGENTS,
        f"{_ROUTES} and hiql-high",
    ),
    Mutation(_HIQL, "length_normalize(reps))", "reps)", _AGENTS, "gaussian_policies and hiql"),
    # gc_sscp
    Mutation(
        _SSCP,
        "subgoal_reps, noise, 1, 1)",
        "subgoal_reps, noise, 0, 1)",
        _AGENTS,
        _reference("gc_sscp-low"),
    ),
    Mutation(
        _SSCP,
        "subgoal_reps = represent(networks, state.params,",
        "subgoal_reps = represent(networks, params,",
        _AGENTS,
        f"{_ROUTES} and gc_sscp-low",
    ),
    Mutation(
        _SSCP,
        "represent(networks, params, observations, goals), noise, 0, 1",
        "represent(networks, state.params, observations, goals), noise, 0, 1",
        _AGENTS,
        f"{_ROUTES} and gc_sscp-high",
    ),
    Mutation(
        _SSCP,
        '(weights * (mse(hop.actions, batch["actions"]) + rep_errors)).mean()',
        '(weights * mse(hop.actions, batch["actions"]) + rep_errors).mean()',
        _AGENTS,
        _reference("gc_sscp-high"),
    ),
    Mutation(
        _SSCP,
        'two_hops(networks, state.target_params["actor"]',
        'two_hops(networks, params["actor"]',
        _AGENTS,
        _reference("gc_sscp-shortcut"),
    ),
    Mutation(
        _SSCP, "goal_reps, noises[0], 0, 2))", "goal_reps, noises[1], 0, 2))", _AGENTS, _reference("gc_sscp-shortcut")
    ),
    Mutation(_SSCP, "bounded(subgoal).reps", "subgoal.reps", _AGENTS, _reference("gc_sscp-shortcut")),
    Mutation(_SSCP, "noises[1], 1, 1)", "noises[0], 1, 1)", _AGENTS, "acts_by_the_slow_actor"),
    Mutation(
        _SSCP, "goal_reps, noise, 0, 2)).actions", "goal_reps, noise, 0, 1)).actions", _AGENTS, "acts_by_the_slow"
    ),
    Mutation(
        _SSCP, '"actor": state.target_params["actor"]}', '"actor": state.params["actor"]}', _AGENTS, "acts_by_the_slow"
    ),
    Mutation(
        _SSCP,
        '"actor": state.hyper["actor_target_rate"]',
        '"actor": state.hyper["value_target_rate"]',
        _AGENTS,
        f"{_STEP} and gc_sscp",
    ),
    Mutation(
        _SSCP,
        "high_loss(networks, params, state, batch, hop_noise)",
        "high_loss(networks, params, state, batch, first_noise)",
        _AGENTS,
        "draws_its_noise",
    ),
    Mutation(_SSCP, "jax.random.normal(rep_key", "jax.random.normal(action_key", _AGENTS, "draws_its_noise"),
    Mutation(_SSCP, "step=state.step + 1", "step=state.step + 2", _AGENTS, f"{_STEP} and gc_sscp"),
    # flow.py
    Mutation(_FLOW, "ends - starts)", "starts - ends)", _FLOWS, "straight_paths_run"),
    Mutation(
        _FLOW,
        "jnp.full((*starts.shape[:-1], 1), i / steps)) / steps",
        "jnp.full((*starts.shape[:-1], 1), (i + 1) / steps)) / steps",
        _FLOWS,
        "euler_by_hand",
    ),
    Mutation(
        _FLOW,
        "points + (1 - times) * jump(points, times, 1 - times)",
        "points + jump(points, times, 1 - times)",
        _FLOWS,
        "completions_by_hand",
    ),
    Mutation(
        _FLOW,
        "jump(points, times, 1 - times) / steps",
        "jump(points, times, jnp.full_like(times, 1 / steps)) / steps",
        _FLOWS,
        "completions_by_hand",
    ),
    Mutation(_FLOW, "first, times + halves, asked)", "first, times, asked)", _FLOWS, "exact_jumps_are_their_own"),
    Mutation(_FLOW, " * (1 + 1e-3)", "", _FLOWS, "rounding_does_not_move"),
    Mutation(_FLOW, "floor * (1 - times)", "floor", _FLOWS, "smallest_bootstrap_steps"),
    Mutation(
        _FLOW,
        "jax.lax.stop_gradient((first + second) / 2)",
        "(first + second) / 2",
        _FLOWS,
        "bootstrap_targets_give_no_gradient",
    ),
    Mutation(
        _FLOW,
        "jnp.zeros_like(begins), jnp.ones_like(times))",
        "jnp.ones_like(begins), jnp.zeros_like(times))",
        _FLOWS,
        "velocity_target_by_hand",
    ),
    Mutation(
        _FLOW,
        "path.velocities - (times - begins) * derivatives",
        "path.velocities + (times - begins) * derivatives",
        _FLOWS,
        "exact_average_velocities and linear",
    ),
    Mutation(
        _FLOW,
        "jax.lax.stop_gradient(path.velocities - (times - begins) * derivatives)",
        "path.velocities - (times - begins) * derivatives",
        _FLOWS,
        "average_velocity_targets_give_no",
    ),
    Mutation(
        _FLOW,
        "jax.random.uniform(key, shape) ** 2",
        "jax.random.uniform(key, shape) ** 0.5",
        _FLOWS,
        "times_follow and early",
    ),
    Mutation(_FLOW, "mean: float = -0.4", "mean: float = 0.4", _FLOWS, "times_follow and logit"),
    Mutation(_FLOW, "flow_ratio * rows", "(1 - flow_ratio) * rows", _FLOWS, "an_exact_share"),
    Mutation(
        _FLOW,
        "jnp.where(equal, times, draws.min(axis=0))",
        "jnp.where(equal, times, draws[0])",
        _FLOWS,
        "an_exact_share",
    ),
    # losses.py and optim.py: critics
    Mutation(
        "flowrl/losses.py",
        'jax.lax.stop_gradient(batch["rewards"] + discount * batch["masks"] * next_values)',
        'batch["rewards"] + discount * batch["masks"] * next_values',
        _CRITICS,
        "td_targets_give_no_gradient",
    ),
    Mutation(
        "flowrl/losses.py",
        'discount * batch["masks"] * next_values',
        "discount * next_values",
        _OFFLINE,
        "nothing_follows_a_terminal and fql",
    ),
    Mutation("flowrl/losses.py", 'q_agg == "min"', 'q_agg == "mean"', _OFFLINE, "constant_networks and sscp"),
    Mutation(
        "flowrl/losses.py",
        "jnp.mean((values - targets) ** 2)",
        "jnp.sum((values - targets) ** 2)",
        _CRITICS,
        "test_critic_loss and plain",
    ),
    Mutation(
        "flowrl/losses.py",
        "jax.lax.stop_gradient(jnp.abs(scale_values).mean() + 1e-8)",
        "(jnp.abs(scale_values).mean() + 1e-8)",
        _CRITICS,
        "holds_its_scale_constant",
    ),
    Mutation(
        "flowrl/losses.py",
        "jnp.abs(scale_values).mean()",
        "jnp.abs(scale_values.mean())",
        _CRITICS,
        "test_normalized_q_loss and plain",
    ),
    Mutation(
        "flowrl/optim.py", "jnp.where(max_norm > 0, ", "jnp.where(max_norm >= 0, ", _CRITICS, "clip_norm and plain"
    ),
    Mutation(
        "flowrl/optim.py",
        "jnp.minimum(1.0, max_norm / (norm + 1e-6))",
        "max_norm / (norm + 1e-6)",
        _CRITICS,
        "clip_norm and plain",
    ),
    Mutation(
        "flowrl/optim.py",
        'clip_norm(grads[name], state.hyper["max_grad_norm"])',
        'clip_norm(grads, state.hyper["max_grad_norm"])[name]',
        _CRITICS,
        "descend_clips",
    ),
    # acting.py
    Mutation(
        _ACTING,
        "jax.vmap(critics)(actions).min(axis=1)",
        "jax.vmap(critics)(actions).mean(axis=1)",
        _ACTS,
        "least_of_the_critics",
    ),
    Mutation(_ACTING, "temperature * values", "values", _ACTS, "softmax_of_q"),
    Mutation(
        _ACTING, "jnp.where(temperature > 0, drawn, ", "jnp.where(temperature >= 0, drawn, ", _ACTS, "temperature_zero"
    ),
    Mutation(
        _ACTING,
        "jax.random.split(sample_key, candidates)",
        "jnp.broadcast_to(sample_key, (candidates,))",
        _ACTS,
        "temperature_zero",
    ),
    Mutation(
        _ACTING,
        'arrays | {"critic": state.target_params["critic"]',
        'arrays | {"critic": state.params["critic"]',
        _ACTS,
        "best_by_the_slow_critics and fql",
    ),
    Mutation(
        _ACTING,
        '("eval",) if config.candidates == 1',
        '("eval",) if config.candidates <= 4',
        _ACTS,
        "ask_for_critics and fql",
    ),
    # sscp
    Mutation(
        _ONE_STEP,
        'state.target_params["actor"], batch["next_observations"], key)',
        'state.params["actor"], batch["next_observations"], key)',
        _OFFLINE,
        _reference("sscp"),
    ),
    Mutation(
        _ONE_STEP,
        "aggregate(next_values, config.q_agg)",
        'aggregate(next_values, "min")',
        _OFFLINE,
        _reference("sscp-bootstrap"),
    ),
    Mutation(_ONE_STEP, "flow.early_times(", "flow.uniform_times(", _OFFLINE, _reference("sscp")),
    Mutation(
        _ONE_STEP,
        "(jump(path.points, times, jnp.zeros_like(times))",
        "(jump(path.points, times, 1 - times)",
        _OFFLINE,
        _reference("sscp"),
    ),
    Mutation(
        _ONE_STEP,
        "proposals = jnp.clip(completions, -1.0, 1.0)",
        "proposals = completions",
        _OFFLINE,
        _reference("sscp"),
    ),
    Mutation(
        _ONE_STEP, "networks.critic.apply(state.params", "networks.critic.apply(params", _OFFLINE, _reference("sscp")
    ),
    Mutation(_ONE_STEP, "(1 - times) * 0.5**levels", "0.5**levels", _OFFLINE, _reference("sscp-bootstrap")),
    Mutation(
        _ONE_STEP,
        'state.target_params["actor"], batch["observations"])',
        'state.params["actor"], batch["observations"])',
        _OFFLINE,
        _reference("sscp-bootstrap"),
    ),
    Mutation(
        _ONE_STEP,
        '"actor": state.hyper["actor_target_rate"]',
        '"actor": state.hyper["critic_target_rate"]',
        _OFFLINE,
        "a_step_is_adam and sscp",
    ),
    Mutation(_ONE_STEP, ", steps=config.completion_steps)", ")", _ACTS, "acting_copy and sscp"),
    Mutation(
        _ONE_STEP,
        'acting.policy, config, "target_params"',
        'acting.policy, config, "params"',
        _ACTS,
        "acting_copy and sscp",
    ),
    # ofql
    Mutation(
        _AVERAGE,
        "observations, noise, begins, begins + 1)",
        "observations, noise, begins + 1, begins + 1)",
        _ACTS,
        "acting_copy and ofql",
    ),
    Mutation(_AVERAGE, "jnp.clip(noise - averages,", "jnp.clip(noise + averages,", _ACTS, "acting_copy and ofql"),
    Mutation(
        _AVERAGE,
        "flow.straight(actions, jax.random.normal(noise_key, actions.shape), times)",
        "flow.straight(jax.random.normal(noise_key, actions.shape), actions, times)",
        _OFFLINE,
        "flow_ratio_one",
    ),
    Mutation(_AVERAGE, "(jax.lax.stop_gradient(errors) + hyper", "(errors + hyper", _OFFLINE, "adaptive_weights"),
    Mutation(_AVERAGE, "loss = 2 * mean", "loss = mean", _OFFLINE, "constant_networks and ofql"),
    Mutation(_AVERAGE, ".max(axis=0)\n", ".mean(axis=0)\n", _OFFLINE, _reference("ofql-uniform")),
    Mutation(_AVERAGE, "aggregate(best, config.q_agg)", 'aggregate(best, "min")', _OFFLINE, _reference("ofql-uniform")),
    Mutation(_AVERAGE, "scale_values[1 - head]", "scale_values[head]", _OFFLINE, "constant_networks and ofql"),
    Mutation(
        _AVERAGE, "values if config.q_scale == ", "values if config.q_scale != ", _OFFLINE, _reference("ofql-uniform")
    ),
    Mutation(
        _AVERAGE,
        _CRITIC_STEP + "    moved = state\n",
        "    moved = state\n" + _CRITIC_STEP,
        _OFFLINE,
        "before_the_actor and ofql",
    ),
    Mutation(
        _AVERAGE,
        '(step >= hyper["actor_target_start"])',
        '(step > hyper["actor_target_start"])',
        _OFFLINE,
        "slow_policy_moves",
    ),
    Mutation(
        _AVERAGE,
        '(step % hyper["actor_target_interval"] == 0)',
        '(step % hyper["actor_target_interval"] == 1)',
        _OFFLINE,
        "slow_policy_moves",
    ),
    Mutation(
        _AVERAGE,
        'scale = policy["noise"] if mode == "best_of_n" else 1.0',
        'scale = policy["noise"]',
        _ACTS,
        "best_by_the_slow_critics and ofql",
    ),
    # fql
    Mutation(
        _DISTILLED,
        'velocity = partial(networks.flow.apply, state.params["flow"]',
        'velocity = partial(networks.flow.apply, params["flow"]',
        _OFFLINE,
        "distillation_gives_the_flow",
    ),
    Mutation(
        _DISTILLED,
        "targets = jnp.clip(flow.euler(velocity, noise, config.flow_steps), -1.0, 1.0)",
        "targets = flow.euler(velocity, noise, config.flow_steps)",
        _OFFLINE,
        _reference("fql"),
    ),
    Mutation(
        _DISTILLED,
        "aggregate(next_values, config.q_agg)",
        'aggregate(next_values, "min")',
        _OFFLINE,
        "constant_networks and fql",
    ),
    Mutation(
        _DISTILLED,
        "if config.normalize_q else",
        "if not config.normalize_q else",
        _OFFLINE,
        "constant_networks and fql",
    ),
    Mutation(
        _DISTILLED,
        "networks.critic.apply(state.params",
        "networks.critic.apply(params",
        _OFFLINE,
        "no_weight_of_the_actor and fql",
    ),
    Mutation(
        _DISTILLED,
        'acting.policy, config, "params"',
        'acting.policy, config, "target_params"',
        _ACTS,
        "acting_copy and fql",
    ),
    # bc
    Mutation(_CLONING, "loss = -unit", "loss = unit", _OFFLINE, _reference("bc")),
    Mutation(_CLONING, "loss = gaussian_loss if", "loss = flow_loss if", _OFFLINE, _reference("bc")),
    Mutation(
        _CLONING,
        "gaussian_draw(actor(), key, mode), -1.0, 1.0)",
        "gaussian_draw(actor(), key, mode), -2.0, 2.0)",
        _ACTS,
        "gaussian_policy_acts",
    ),
    # data
    Mutation(
        "flowrl/data/transitions.py",
        "np.where(firsts & ~kept, 0, 1 + (kept & ends))",
        "1 + (kept & ends)",
        "tests/test_transitions.py",
        "lone_rows_leave_nothing",
    ),
    Mutation(
        "flowrl/data/transitions.py",
        'kept = ~ends | (arrays["masks"] == 0)',
        "kept = np.ones(rows, bool)",
        "tests/test_transitions.py",
        "leads_nowhere_is_dropped",
    ),
    Mutation("flowrl/data/d4rl.py", "timeouts | terminated", "timeouts", "tests/test_d4rl.py", "test_a_known_file"),
    Mutation("flowrl/data/d4rl.py", "timeouts[-1] = True", "pass", "tests/test_d4rl.py", "test_a_known_file"),
    Mutation(
        "flowrl/data/fields.py", "2.0 / (high - low)", "1.0 / (high - low)", "tests/test_transitions.py", "unit_box"
    ),
    Mutation(
        "flowrl/data/manipulation.py",
        "button_plan.ButtonPlanOracle(gripper_always_closed=puzzle, **common)",
        "button_plan.ButtonPlanOracle(**common)",
        "tests/test_manipulation.py",
        "set_as_published",
    ),
    Mutation(
        "flowrl/data/manipulation.py",
        "env.set_new_target(p_stack=stack)",
        "env.set_new_target(p_stack=0.5)",
        "tests/test_manipulation.py",
        "oracle_is_done",
    ),
    Mutation(
        "flowrl/data/collect.py",
        "[seed, episode] + ([attempt] if attempt else [])",
        "[seed, episode]",
        "tests/test_manipulation.py",
        "block_leaves",
    ),
    Mutation(
        "flowrl/normalize.py",
        "(x - normalizer.mean) / normalizer.std",
        "x / normalizer.std",
        "tests/test_normalize.py",
        "sees_normalised",
    ),
    Mutation(
        "flowrl/normalize.py",
        "np.where(terminals, 0.0, rewards)",
        "rewards",
        "tests/test_normalize.py",
        "returns_of_episodes",
    ),
    # online
    Mutation(_REPLAY, "replay.offset + ", "", _BUFFER, "view_of_one_run"),
    Mutation(_REPLAY, "(replay.position + jnp.arange(count)) % capacity", "jnp.arange(count)", _BUFFER, "full_buffer"),
    Mutation(_REPLAY, "0, stored + replay.size) < stored", "0, 2 * stored) < stored", _BUFFER, "equally_likely"),
    Mutation(_ONLINE, "1 - terminated.astype", "1 - ended.astype", _ACTED, "limits_of_time"),
    Mutation(
        _ONLINE, "return Transitions(before, after,", "return Transitions(before, self.observations,", _ACTED, "limits"
    ),
    Mutation(_ONLINE, "step - options.warmup_steps", "step", _ACTED, "updates_due"),
    Mutation("flowrl/gaussian.py", "- log_slope", "+ log_slope", _LEARNT, "squashed_gaussian_by_hand"),
    Mutation(
        "flowrl/gaussian.py",
        "noise**2 + jnp.log(2 * jnp.pi)) - log_stds",
        "noise**2 + jnp.log(2 * jnp.pi))",
        _LEARNT,
        "squashed_density",
    ),
    Mutation("agents/sac.py", "- temperature(state.params) * log_probs\n", "\n", _LEARNT, f"{_REFERENCES} and sac"),
    Mutation(
        "flowrl/maximum_entropy.py",
        "-log_probs.mean() - target_entropy",
        "target_entropy + log_probs.mean()",
        _LEARNT,
        "temperature_falls",
    ),
    Mutation(
        "flowrl/maximum_entropy.py",
        "temperature(state.params) * log_probs - losses.aggregate",
        "temperature(params) * log_probs - losses.aggregate",
        _LEARNT,
        f"{_REFERENCES} and sac",
    ),
    Mutation("agents/td3.py", "noise = jnp.clip(noise,", "jnp.clip(noise,", _LEARNT, f"{_REFERENCES} and td3"),
    Mutation("flowrl/optim.py", "state.step % interval == 0", "state.step % interval == 1", _LEARNT, "test_every"),
    Mutation(
        "flowrl/mirror_descent.py", "(values - mean) / std if", "values - mean / std if", _MIRROR, "weights_by_hand"
    ),
    Mutation(
        "flowrl/mirror_descent.py",
        "jnp.clip(standard, -clip, clip) / ",
        "jnp.clip(standard, -clip, clip) * ",
        _MIRROR,
        "weights_by_hand",
    ),
    Mutation("flowrl/mirror_descent.py", "gap -= before", "gap += before", _MIRROR, "temperature_seeks"),
    Mutation(
        "flowrl/mirror_descent.py", "jnp.mean(weights * generator", "jnp.mean(generator", _MIRROR, "weights_scale"
    ),
    Mutation("flowrl/mirror_descent.py", 'state.hyper["reward_scale"] * batch', "batch", _MIRROR, "running_statistics"),
    Mutation("agents/fpmd_m.py", "points = points - ", "points = points + ", _MIRROR, "true_field_leads"),
    Mutation(
        "agents/fpmd_r.py",
        "flow.straight(jax.random.normal(noise_key, actions.shape), actions, times)",
        "flow.straight(actions, jax.random.normal(noise_key, actions.shape), times)",
        _MIRROR,
        "true_field_has_no_error",
    ),
    Mutation(
        "agents/dpmd.py",
        "observations, points, levels), noise)",
        "observations, points, levels), -noise)",
        _DIFFUSION,
        "errors_by_hand",
    ),
    Mutation(
        "flowrl/diffusion.py", "jnp.sqrt(left) * data + ", "jnp.sqrt(left) * data - ", _DIFFUSION, "noise_by_hand"
    ),
    Mutation("flowrl/diffusion.py", "beta * (1 - before) / (1 - left)", "beta", _DIFFUSION, "one_step_by_hand"),
    Mutation("flowrl/data/mujoco_sets.py", "returns >= returns.max() / 3", "returns >= returns[0]", _SETS, "who_acts"),
    Mutation("flowrl/data/mujoco_sets.py", "not terminated and (", "(", _SETS, "stretch_is_episodes and uniform"),
    Mutation(_CALIBRATED, "jnp.maximum(proposal_values", "jnp.minimum(proposal_values", _CAL_QL, "gap_by_hand"),
    Mutation(_CALIBRATED, "values - log_densities, axis=1", "values + log_densities, axis=1", _CAL_QL, "gap_by_hand"),
    Mutation(_CALIBRATED, "min(axis=0).max(axis=0)", "max(axis=0).min(axis=0)", _CAL_QL, f"{_REFERENCES} and 0-True"),
    Mutation(
        _CALIBRATED,
        "actor_loss(networks, spec, params, before",
        "actor_loss(networks, spec, params, state",
        _CAL_QL,
        f"{_REFERENCES} and 0-False",
    ),
    Mutation("flowrl/data/returns.py", "discount * masks * steps", "discount * masks", _SUMS, "do_not_touch"),
    Mutation("flowrl/data/returns.py", "(least == most) & (most <= 0)", "least == most", _SUMS, "by_hand"),
    Mutation("flowrl/data/returns.py", "kept = age <= self._capacity", "kept = age > 0", _SUMS, "reach_the_rows"),
    Mutation(_REPLAY, "{**RETURNS, **rows}", "{**replay.fields, **rows}", _SUMS, "reach_the_rows"),
    Mutation(
        "flowrl/normalize.py",
        "normalizer.reward_shift * horizons",
        "normalizer.reward_shift",
        _SUMS,
        "normalised_returns",
    ),
    Mutation("flowrl/stats.py", "-1), 0.25, axis=-1)", "-1), 0.2, axis=-1)", _STATS, "by_hand"),
    Mutation("flowrl/stats.py", "mean(scores > threshold)", "mean(scores >= threshold)", _STATS, "strictly_above"),
    Mutation("flowrl/stats.py", " + 0.5 * (ours == theirs)", "", _STATS, "improvement_by_hand"),
    Mutation(
        "flowrl/stats.py",
        "rng.integers(0, len(matrix), (resamples, *matrix.shape))",
        "rng.integers(0, len(matrix), (resamples, len(matrix), 1)).repeat(matrix.shape[1], axis=2)",
        _STATS,
        "within_their_task or rliable",
    ),
    Mutation(
        "flowrl/comparisons.py",
        'key=lambda row: row["mean"]',
        'key=lambda row: max(row["per_seed"].values())',
        _COMPARISONS,
        "best_one",
    ),
    Mutation(
        "flowrl/comparisons.py",
        "if key != field}",
        'if key not in (field, "agent.hidden_dims")}',
        _COMPARISONS,
        "sensitivity",
    ),
    # sweeps
    Mutation(
        "flowrl/loop.py",
        "jax.tree.map(partial(jnp.where, going), after.replace(step=None), before.replace(step=None))",
        "after.replace(step=None)",
        _LOOP,
        "frozen and serial",
    ),
    Mutation("flowrl/config.py", "own.get(name, getattr(config, name, None))", "getattr(config, name)", _LOOP, "own"),
    Mutation(_SWEEPS, "name in traced and len(values) > 1", "len(values) > 1", _SWEPT, "static_fields"),
    Mutation(
        _SWEEPS,
        "for point in _product(mapped) for seed in seeds]",
        "for seed in seeds for point in _product(mapped)]",
        _SWEPT,
        "static_fields",
    ),
    Mutation(_SWEEPS, "curve[group.steps[-1]]", "max(curve.values())", _SWEPT, "by_hand"),
    Mutation(_SWEEPS, "part.trials[begin:end]", "part.trials[begin : end - 1]", _SWEPT, "few_and_equal"),
    Mutation("flowrl/memory.py", "free // jax.local_device_count()", "free", _SWEPT, "memory_of_a_cpu"),
    Mutation("flowrl/memory.py", "SHARE * free - fixed", "SHARE * free", _SWEPT, "as_many"),
    # devices.py, hosts.py, and what reads their checkpoints
    Mutation(_DEVICES, "self.runs - 1)]", "0)]", _SPREAD, "rows_fill"),
    Mutation(_DEVICES, "(hosts.index() + 1) * share", "hosts.index() + share", _SPREAD, "its_own_runs"),
    Mutation(_DEVICES, "self.runs if hosts.first() else 0", "self.runs", _SPREAD, "its_own_runs"),
    Mutation(_DEVICES, "hosts.count() > runs", "hosts.count() > 2 * runs", _SPREAD, "cannot_be_spread"),
    Mutation(
        "flowrl/checkpoint.py",
        "name, shape)[1:] != shape[1:]",
        "name, shape)[2:] != shape[2:]",
        _SPREAD,
        "cut_or_filled",
    ),
    Mutation("flowrl/checkpoint.py", "(shapes, strict=False)", "(shapes)", _SPREAD, "cut_or_filled"),
    Mutation("flowrl/hosts.py", "watchdog.start()", "pass", _SPREAD, "does_not_come"),
    Mutation(
        _DEVICES, "return jax.lax.with_sharding_constraint(batch,", "return (lambda x, _: x)(batch,", _SPREAD, "are_cut"
    ),
    Mutation(_SWEEPS, "rows_each <= each", "rows_each <= each + 1", _SPREAD, "waves_fit"),
    Mutation("flowrl/run.py", "        self.diverging(loop.divergences(self.window))\n", "", _SWEPT, "still_tells"),
    Mutation(
        "flowrl/run.py",
        "row, run in enumerate(self.own)",
        "row, run in enumerate(range(len(self.own)))",
        "tests/test_cli.py",
        "overflows",
    ),
    # dying workers
    Mutation("flowrl/evaluate.py", "times.reshape(-1)[list(view.restarted)] = 0", "pass", _EVALUATED, _KILLED),
    Mutation("flowrl/evaluate.py", "            on_step(done, successes.size)\n\n", "\n", _EVALUATED, "goes_before"),
    Mutation(_WORKERS, "del self._left[event.slot][0]", "pass", _EVALUATED, _KILLED),
    Mutation(
        _WORKERS,
        "            self._on_death()\n",
        "            self._on_death()\n            for slot in self._shares[min(dead)]:\n"
        "                del self._left[slot][:1]\n",
        _EVALUATED,
        _KILLED,
    ),
    Mutation(_WORKERS, "in self._shares[worker]]\n\n", "in self._shares[0]]\n\n", _EVALUATED, _KILLED),
    Mutation(_WORKERS, "restarted |= {*self._shares[worker]}", "restarted |= {worker}", _EVALUATED, _KILLED),
    Mutation(_WORKERS, "self._shown |= replies", "self._shown = replies", _EVALUATED, _KILLED),
    Mutation(
        _WORKERS, "row or anything for row in self._rows", "row for row in self._rows if row", _EVALUATED, _KILLED
    ),
    Mutation(_WORKERS, "self._deaths[worker] += 1", "pass", _EVALUATED, "again_and_again"),
    Mutation(_WORKERS, "process.exitcode >= 0", "False", _EVALUATED, "by_itself"),
    Mutation("flowrl/evaluate.py", "np.where(good, values, 0)", "values", _EVALUATED, "not_finite"),
    # signals
    Mutation("flowrl/signals.py", "        process.terminate()\n", "        pass\n", _SIGNALLED, "passed_on"),
    Mutation("flowrl/signals.py", "        raise SystemExit(status)", "        return status", _SIGNALLED, "likewise"),
    Mutation(
        "flowrl/run.py", "            raise loop.Stopped  # before", "            pass  # before", _SWEPT, "Checkpoints"
    ),
    Mutation(_SWEEPS, "if status or stopped:", "if status:", _SWEPT, "any_moment"),
    Mutation(_SIGNALS, "    exit_on_sigterm()\n", "", _SIGNALLED, "a_program_ends"),
    Mutation(_SIGNALS, "now - second > AT_ONCE", "False", _SIGNALLED, "until_a_second"),
    Mutation(_SIGNALS, "return now - max(first, self.since) > self.limit", "return False", _SIGNALLED, "compiled_code"),
    Mutation(_SIGNALS, "            signal.set_wakeup_fd(before)\n", "", _SIGNALLED, "watch_ends"),
    Mutation(
        _SIGNALS, "if signal.getsignal(number) is not signal.SIG_IGN:", "if True:", _SIGNALLED, "ignored_interrupt"
    ),
    Mutation("flowrl/start.py", "abrupt()\n", "", _TERMINAL, "amid_the_imports"),
    Mutation("flowrl/start.py", "open_closed()\n", "", _TERMINAL, "place_of_a_closed"),
    # bad input
    Mutation(_FLAGS, "if not math.isfinite(value):", "if False:", _LIMITS, "no_numbers"),
    Mutation(_FLAGS, "return value + 0.0", "return value", _LIMITS, "layers_and_values"),
    Mutation(_FLAGS, "            return int(number)\n", "            raise\n", _LIMITS, "as_people_write"),
    Mutation(_FLAGS, 'values[name].value == ""', "values[name].value is None", _LIMITS, "that_cannot_be"),
    Mutation(_FLAGS, 'if asks(arguments, "version"):', "if False:", _LIMITS, "says_its_version"),
    Mutation(_CONFIG, "if value == 0 and (reason", "if False and (reason", _LIMITS, "that_cannot_be"),
    Mutation(_CONFIG, "    if value < low:\n", "    if value <= low:\n", _LIMITS, "bounds_that_messages"),
    Mutation(_CONFIG, "    if value > high:\n", "    if value >= high:\n", _LIMITS, "bounds_that_messages"),
    Mutation(_CONFIG, "-MOST_FLOAT) <= value <= high:", "-MOST_FLOAT) <= value < high:", _LIMITS, "bounds_of_agents"),
    Mutation(_CONFIG, "if len(value) > MOST_LAYERS:", "if False:", _LIMITS, "refused_at_once"),
    Mutation(_CONFIG, "if not max(low, -MOST_FLOAT) <=", "if not low <=", _LIMITS, "no_float_field"),
    Mutation(_SETTINGS, "settings.num_seeds - 1 > MAX_SEED", "settings.num_seeds > MAX_SEED", _LIMITS, "last_seed"),
    Mutation(_SETTINGS, 'dict.fromkeys(preset.run, "the preset\'s")', "{}", _LIMITS, "not_the_user"),
    Mutation(_SETTINGS, "if updates > configs.MOST_COUNT:", "if False:", _LIMITS, "can_do_online"),
    Mutation(_ESTIMATES, "if free is not None and total > free:", "if False:", _LIMITS, "refused_at_once"),
    Mutation(_ESTIMATES, "if need.amount > DAY:", "if False:", _LIMITS, "refused_at_once"),
    Mutation(_ESTIMATES, "if total > MOST_DAYS * DAY:", "if False:", _LIMITS, "refused_at_once"),
    Mutation(_ESTIMATES, "for need in needs)) > free:", "for need in needs)) < 0:", _LIMITS, "refused_at_once"),
    Mutation(_ESTIMATES, "    if not begun:\n", "    if True:\n", _LIMITS, "disk_of_a_resumed"),
    Mutation("flowrl/memory.py", "*_left_of_cgroups(), ", "", _LIMITS, "narrowest_limit"),
    Mutation("flowrl/memory.py", ", *_left_of_ulimit()", "", _LIMITS, "narrowest_limit"),
    Mutation(_SWEEPS, "        estimates.require(made, runs=1)", "        pass", _LIMITS, "million_points"),
    Mutation(_SPREAD_OVER, "except (RuntimeError, AssertionError)", "except RuntimeError", _LIMITS, "a_platform"),
    Mutation("flowrl/errors.py", 'sys.modules["jax"].devices()', "pass", _TERMINAL, "jax_without"),
    Mutation("flowrl/envs.py", "            _import_without_opengl()\n", "            pass\n", _TERMINAL, "opengl"),
    Mutation(
        "flowrl/checkpoint.py", "        log.setLevel(logging.CRITICAL)\n", "        pass\n", _TERMINAL, "one_line"
    ),
    Mutation("flowrl/terminal.py", "isinstance(error.__cause__, BrokenPipeError)", "False", _TERMINAL, "nobody_reads"),
    Mutation("flowrl/terminal.py", '_PLAIN.get(sign, "?")', '"?"', _TERMINAL, "ascii"),
    Mutation("flowrl/progress.py", "initial=begun", "initial=0", _TERMINAL, "what_was_done_before"),
    Mutation(
        "flowrl/progress.py", "if self._bar.disable and", "if not self._bar.disable and", _TERMINAL, "now_and_then"
    ),
    Mutation("flowrl/run.py", "begun=step, leave", "begun=0, leave", _BAD_INPUT, "bar_comes"),
    Mutation("flowrl/run.py", "if rate > float(", "if rate >= float(", _BAD_INPUT, "advice_after"),
    Mutation(
        "flowrl/files.py", "            left.unlink()\n", "            pass\n", "tests/test_resume.py", "before_config"
    ),
    Mutation(
        "flowrl/files.py",
        " and not any((folder / CHECKPOINTS)",
        " and any((folder / CHECKPOINTS)",
        "tests/test_resume.py",
        "before_config",
    ),
    # sinks and videos
    Mutation(_SINKS, "if names == columns:", "if columns:", _COPIES, "come_and_go"),
    Mutation(_SINKS, "path.unlink(missing_ok=True)", "pass", _COPIES, "come_and_go"),
    Mutation(_SINKS, "for old in folder.rglob(", "for old in folder.glob(", _COPIES, "killed and _log"),
    Mutation(
        _SINKS, "for kind, records in history(", "for kind, records in () and history(", _COPIES, "asked_for_later"
    ),
    Mutation(_SINKS, "2 * step + KINDS.index(kind)", "step", _COPIES, "killed and _checkpoint"),
    Mutation(_SINKS, "secrets.token_hex(8) for _", "'same' for _", _COPIES, "run_of_its_own"),
    Mutation(_SINKS, "self._sinks.pop(name, None)", "", _COPIES, "one_warning"),
    Mutation(_SINKS, "by_time = sorted(lines, key=lambda line: line[0])", "by_time = lines", _COPIES, "in_the_order"),
    Mutation(
        "flowrl/evaluate.py", "int(self._seeds[0, number])", "int(self._seeds[-1, number])", _FILMED, "in_any_row"
    ),
    Mutation("flowrl/evaluate.py", "task * each + number for", "task * episodes + number for", _FILMED, "in_any_row"),
    Mutation("flowrl/camera.py", "[given] if given else ", "", _FILMED, "tried_apart"),
    Mutation("flowrl/videos.py", "except (UserError, RuntimeError)", "except UserError", _FILMED, "cannot_draw"),
)
