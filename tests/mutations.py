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
_EPISODES, _SPACES, _ENVS, _SIDE = (f"flowrl/{name}.py" for name in ("episodes", "spaces", "envs", "side_by_side"))
_SEEN, _MINARI, _SUMMARY = "tests/test_episodes.py", "tests/test_minari.py", "flowrl/summary.py"
_SIGNALS, _FLAGS, _CONFIG, _SETTINGS, _ESTIMATES, _SPREAD_OVER = (
    f"flowrl/{name}.py" for name in ("signals", "flags", "config", "settings", "estimates", "devices")
)
_BAD_INPUT, _LIMITS, _TERMINAL = (f"tests/test_{name}.py" for name in ("cli", "limits", "terminal"))
_KILLED, _SIGNALLED = "killed_amid", "tests/test_signals.py"
_SINKS, _COPIES, _FILMED = "flowrl/sinks.py", "tests/test_sinks.py", "tests/test_videos.py"
_DIFFUSION = "tests/test_diffusion.py"
_PROGRESS, _TOLD = "flowrl/progress.py", "tests/test_progress.py"
_DESCENT, _HELD = "flowrl/mirror_descent.py", "tests/test_conformance.py"
_INSTALLED, _SETUP, _HOSTS = "tests/test_installation.py", "setup.cfg", "flowrl/hosts.py"
_DEVICES, _SPREAD = "flowrl/devices.py", "tests/test_devices.py"
_RESUMING, _FORMAT, _RECORDED = "flowrl/resuming.py", "flowrl/run_files.py", "tests/test_run_files.py"
_SCHEMA, _CHECKPOINTS, _FILES = "flowrl/schema.py", "flowrl/checkpoint.py", "flowrl/files.py"
_READ, _PLOTTED, _REPORTED = "flowrl/curves.py", "tests/test_plot.py", "tests/test_report.py"
_AGAIN = "tests/test_evaluate_again.py"
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
        "incremental_update(params[name], state.target_params[name], rate)",
        "incremental_update(state.target_params[name], params[name], rate)",
        _AGENTS,
        f"{_STEP} and gcivl",
    ),
    Mutation(
        "flowrl/optim.py",
        "state.params if toward is None else toward",
        "state.params",
        _AGENTS,
        "toward_what_it_is_given",
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
        "jnp.cos(angles)], axis=-1)\n",
        "jnp.sin(angles)], axis=-1)\n",
        _TRAINING,
        "test_sinusoidal_features",
    ),
    Mutation(_MODULES, "(size // 2))\n", "(size // 2 - 1))\n", _TRAINING, "scaled_sinusoidal"),
    Mutation(_MODULES, " / jnp.sqrt(size)", "", _TRAINING, "scaled_sinusoidal"),
    Mutation(_MODULES, "-2.0, 2.0, shape", "-3.0, 3.0, shape", _NETWORKS, "truncated_kernels"),
    Mutation(_MODULES, "self.final_init or glorot", "glorot", _NETWORKS, "initialisation_that_is_asked"),
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
        _SSCP, "state.params if config.hops == 2 else state.target_params", "state.params", _AGENTS, "acts_by_the_slow"
    ),
    Mutation(
        _SSCP,
        "state.params if config.hops == 2 else state.target_params",
        "state.target_params",
        _HELD,
        "gc_sscp and actions and not embed",
    ),
    *(
        Mutation(path, "state.params if config.lagging_targets else moved.params", "moved.params", _HELD, select)
        for path, select in (
            (_GCIVL, "gcivl and after"),
            (_HIQL, "hiql and after and not rep_grad"),
            (_SSCP, "gc_sscp and after and not embed"),
            (_ONE_STEP, "sscp__mean_q and after"),
            (_DISTILLED, "fql__min_q and after"),
            ("agents/sac.py", "sac__mean_q and after"),
        )
    ),
    Mutation(
        _GCIVL,
        "state.params if config.lagging_targets else moved.params",
        "state.params",
        _AGENTS,
        "before_the_step_or_after_it and gcivl",
    ),
    Mutation(_GCBC, "-1.0, 1.0)", "-9.0, 9.0)", _HELD, "gcbc and actions"),
    Mutation(_SSCP, "x, float)", "x, jnp.float32)", _HELD, "gc_sscp and losses and not embed"),
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
        "flowrl/losses.py", "jnp.abs(values.mean(axis=0)).mean()", "jnp.abs(values).mean()", _CRITICS, "mean_q_loss"
    ),
    Mutation(
        "flowrl/losses.py",
        "jnp.abs(values.mean(axis=0)).mean()",
        "jnp.abs(values).mean()",
        _HELD,
        "(fql__normalized or sscp__mean_q) and losses",
    ),
    Mutation(
        "flowrl/losses.py", "jax.lax.stop_gradient(jnp.maximum(size", "(jnp.maximum(size", _CRITICS, "mean_q_loss_holds"
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
    Mutation(_ONE_STEP, '1.0, "Weight of the completion', '0.1, "Weight of the completion', _TRAINING, "defaults_are"),
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
        'flow_actions(networks, config, state.params["flow"]',
        'flow_actions(networks, config, params["flow"]',
        _OFFLINE,
        "distillation_gives_the_flow",
    ),
    Mutation(
        _DISTILLED,
        "return jnp.clip(flow.euler(velocity, noise, config.flow_steps), -1.0, 1.0)",
        "return flow.euler(velocity, noise, config.flow_steps)",
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
        "mean_q_loss(values, config.normalize_q)",
        "mean_q_loss(values, not config.normalize_q)",
        _OFFLINE,
        "constant_networks and fql",
    ),
    Mutation(
        _DISTILLED,
        "mean_q_loss(values, config.normalize_q)",
        "mean_q_loss(values.min(axis=0, keepdims=True), config.normalize_q)",
        _HELD,
        "fql__min_q and losses",
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
    Mutation("flowrl/data/d4rl.py", "timeouts | terminated", "timeouts", "tests/test_d4rl.py", "leads_to_a_copy"),
    Mutation("flowrl/data/d4rl.py", "marked[-1] = True", "pass", "tests/test_d4rl.py", "test_a_known_file"),
    Mutation(
        "flowrl/data/fields.py", "(block - centre) / width", "block / width", "tests/test_transitions.py", "unit_box"
    ),
    *(
        Mutation("flowrl/data/ends.py", old, new, "tests/test_ends.py", select)
        for old, new, select in (
            ('"truncation", "truncated", "trunc", "timelimit"', '"truncation", "trunc", "timelimit"', "mean_a_cut"),
            ("if (other != found).any()", "if False", "may_not_differ"),
            (
                "    if words & (_ENDS | _STARTS):\n        if not",
                "    if words & _ENDS:\n        if not",
                "tell_of_ends",
            ),
            ("unknown = told & ~known", "unknown = known & ~known", "that_tell_of_ends"),
            ("last[:-1] = marked[1:]", "last[:] = marked", "that_tell_of_ends and is_first"),
            ("(0 if words", "(1 if words", "that_tell_of_ends and not_dones"),
            ("values[1:] < values[:-1]", "values[1:] < 0", "that_tell_of_ends and timesteps"),
            ("places = np.cumsum(places)", "pass", "that_tell_of_ends and lengths"),
            ("places = places + 1", "pass", "that_tell_of_ends and end_idx"),
            ("if told is None and words", "if False and words", "not_understood"),
            ("unmarked[first + odd[~close]] = True", "pass", "nothing_marks"),
            ("rounding = max(", "rounding = min(", "less_exact"),
            ("if 2 * count > possible", "if False", "fit_no_row"),
            ("if not good.all():\n            place", "if False:\n            place", "beside_the_way"),
            ("sizes = np.abs(observations[", "sizes = (observations[", "changes_of_sign"),
            ("changes[ends[start : start + len(changes)]] = 0", "pass", "across_the_maze"),
            ("_MANY_USUAL, _MANY_FAR = 0.97, 6.0", "_MANY_USUAL, _MANY_FAR = 0.97, 600.0", "across_the_maze"),
            ("_FEW_USUAL, _FEW_FAR = 0.5, 20.0", "_FEW_USUAL, _FEW_FAR = 0.97, 600.0", "searched_for_jumps"),
        )
    ),
    *(
        Mutation("flowrl/data/d4rl.py", old, new, "tests/test_ends.py", select)
        for old, new, select in (
            ("ends |= unmarked", "pass", "nothing_marks"),
            ("marked = marked | over", "pass", "exceed_the_limit"),
            ("marks.note_jumps(file, observations, ends)", "pass", "searched_for_jumps"),
        )
    ),
    Mutation(
        "flowrl/data/ogbench_sets.py",
        "marks.check_other_names(file, terminals, remedy)",
        "",
        "tests/test_ends.py",
        "every_end",
    ),
    Mutation(
        "flowrl/data/ogbench_sets.py", "if unmarked.any():", "if False:", "tests/test_ends.py", "compared_with_next"
    ),
    Mutation("flowrl/data/transitions.py", "[:-1].any():", "[:0].any():", "tests/test_ends.py", "amid_an_episode"),
    *(
        Mutation("flowrl/data/fields.py", old, new, "tests/test_transitions.py", select)
        for old, new, select in (
            ("block[:] = np.where(fixed, 0.0, scaled)", "block[:] = scaled", "fixed_components"),
            (
                "high / 2 - low / 2, high / 2 + low / 2",
                "(high - low).astype(np.float32) / 2, low * 0",
                "fixed_components",
            ),
            ("bad = ~finite | (high < low)", "bad = high < low", "refused_by_component"),
            ("moved = np.abs(scaled * fixed) > ACTION_TOLERANCE", "moved = fixed & False", "fixed_components"),
            ("array = array.reshape(rows, width)", "pass", "another_shape"),
        )
    ),
    *(
        Mutation("flowrl/data/fields.py", old, new, "tests/test_storage.py", select)
        for old, new, select in (
            ("if free is not None and needed > free", "if False", "free_memory"),
            ("except MemoryError as error", "except ZeroDivisionError as error", "refused_is_said"),
            ("if remedy is None and (near :=", "if False and (near :=", "missing_field"),
            ("unread, 0.85)", "unread, 1.1)", "another_spelling and mask"),
            ('turned = "transpose it" if', 'turned = "" if', "something_else"),
        )
    ),
    *(
        Mutation("flowrl/data/storage.py", old, new, "tests/test_storage.py", select)
        for old, new, select in (
            ("if claimed > held and", "if False and", "claims_more_than"),
            ("held = min(held, _DEFLATION * info.compress_size)", "pass", "compressed_so"),
            ("if claimed > max(_SPARSE", "if 0 > max(_SPARSE", "never_written"),
            ("if not by_columns:", "if True:", "lie_together"),
            ("(SyntaxError, tokenize.TokenError)", "SyntaxError", "that_are_none"),
        )
    ),
    Mutation(
        "flowrl/data/columns.py",
        "least.reduce(parts, axis=0)",
        "least.reduce(many if whole else parts, axis=0)",
        "tests/test_storage.py",
        "extents",
    ),
    Mutation("flowrl/data/minari_sets.py", "_check_claims(path, dataset.id)", "", "tests/test_minari.py", "claims"),
    Mutation("flowrl/data/minari_sets.py", "note_ends_amid(whole, amid)", "", "tests/test_minari.py", "in_doubt"),
    *(
        Mutation("flowrl/data/description.py", old, new, "tests/test_description.py", select)
        for old, new, select in (
            ("prepend=-1) - 1", "prepend=-1)", "facts"),
            ('inner_extent(arrays["actions"], inside)', 'extent(arrays["actions"])', "facts"),
            ('share = bound_share(arrays["actions"], inside)', "share = 0", "facts"),
            ("if reading.unread:", "if False:", "facts"),
            ("if steps <= 5:", "if False:", "tiny"),
            ("elif 2 * np.count_nonzero(lengths == 1) > steps:", "elif False:", "single_step"),
            ("if limit is not None and lengths.max() > limit:", "if False:", "beyond_the_limit"),
            ("ranges[0] == ranges[1]", "ranges[0] > ranges[1]", "implausible"),
            ("if sizes.max() >= _HUGE:", "if False:", "implausible"),
            ("if constant.all():", "if False:", "implausible"),
            ("filled <= _NARROW", "filled < 0 * _NARROW", "implausible"),
            ("(high - low) / 2", "np.maximum(high, -low)", "implausible"),
            ("(bounds or narrow[~constant].all())", "True", "gentle"),
            ("> 0.9:", "> 9:", "implausible"),
            ("if rewards.min() == rewards.max():", "if False:", "implausible"),
            ('arrays["masks"][inside].any()', "True", "implausible"),
            ("if transitions >= batch_size:", "if True:", "tiny"),
        )
    ),
    Mutation("flowrl/records.py", '"note": doubts', '"note": ()', "tests/test_description.py", "banner"),
    Mutation("flowrl/records.py", "(source.detail, *facts)", "source.detail", "tests/test_description.py", "banner"),
    Mutation(
        "flowrl/data/sources.py",
        "REMEDIES.get(source.origin",
        'REMEDIES.get("official"',
        "tests/test_reading.py",
        "deleted",
    ),
    Mutation("flowrl/data/sources.py", "if near:\n", "if False:\n", "tests/test_sources.py", "misspelt"),
    Mutation("flowrl/data/sources.py", "_cache(target.parent.name)", "", "tests/test_sources.py", "names_the_variable"),
    Mutation(_PROGRESS, "now - self._told >= EVERY", "False", _TOLD, "thirty_seconds"),
    Mutation(_PROGRESS, "self.to(self.n + more)", "self.to(more)", _TOLD, "thirty_seconds"),
    Mutation(_PROGRESS, "self._start or (now, n)", "self._start or (self._told, 0)", _TOLD, "before_the_first"),
    Mutation(_PROGRESS, "bool(self._bar.disable and not hidden)", "bool(self._bar.disable)", _TOLD, "other_hosts"),
    Mutation(_PROGRESS, "initial=done", "initial=0", _TOLD, "on_a_terminal"),
    Mutation("flowrl/normalize.py", "_require_finite(arrays, *values)", "", "tests/test_normalize.py", "not_finite"),
    Mutation(
        "flowrl/normalize.py", "rounding = 1e-10 *", "rounding = 0 *", "tests/test_normalize.py", "but_for_rounding"
    ),
    Mutation("flowrl/data/returns.py", "if not np.isfinite(found[name]).all():", "if False:", _SUMS, "not_finite"),
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
        "flowrl/data/returns.py",
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
    Mutation(
        "flowrl/presets/__init__.py",
        '"offline_to_online" if online else "offline"',
        '"offline"',
        "tests/test_presets.py",
        "goes_online_with_every",
    ),
    Mutation(
        "flowrl/settings.py",
        'online = bool(given.get("online_steps"))',
        "online = False",
        "tests/test_presets.py",
        "goes_online_starts",
    ),
    Mutation(
        "flowrl/presets/__init__.py",
        "online_steps=400_000, warmup_steps=10_000",
        "online_steps=400_000, warmup_steps=5_000",
        "tests/test_presets.py",
        "experts_have",
    ),
    Mutation("agents/sac.py", "getattr(nn, config.activation)", "nn.relu", _HELD, "sac__mean_q and losses"),
    Mutation("flowrl/gaussian.py", "side_by_side(2, ", "side_by_side(1, ", _NETWORKS, "heads_of_a_squashed"),
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
    Mutation(_DESCENT, "(values - mean) / std if", "values - mean / std if", _MIRROR, "weights_by_hand"),
    Mutation(_DESCENT, "else values - mean / std", "else (values - mean) / std", _MIRROR, "weights_by_hand"),
    Mutation(_DESCENT, "range(config.critic_steps - 1)", "range(0)", _MIRROR, "meet_the_critics and 2 and fpmd_m"),
    Mutation(_DESCENT, '2, "Adam steps', '1, "Adam steps', _HELD, "authors and fpmd_m-after"),
    Mutation(
        _DESCENT,
        'networks.critic.apply(state.params["critic"], next_observations, next_actions).min',
        'networks.critic.apply(before.params["critic"], next_observations, next_actions).min',
        _MIRROR,
        "meet_the_critics and fpmd_m",
    ),
    Mutation(
        _DESCENT,
        'return generator.sample(policy["actor"], observations, key, policy["start_scale"], evaluation)',
        'return generator.sample(policy["actor"], observations, key, policy["start_scale"], evaluation).clip(-1, 1)',
        _MIRROR,
        "ranked_as_sampled",
    ),
    Mutation(_DESCENT, "actions = jnp.clip(actions, -1.0, 1.0)\n", "pass\n", _MIRROR, "ranked_as_sampled"),
    Mutation(
        _DESCENT,
        "noisy=not best)",
        "noisy=not best).clip(-1, 1)",
        _ACTED,
        "left_the_box",
    ),
    Mutation(_DESCENT, "return 2 * mean, metrics", "return mean, metrics", _HELD, "authors and fpmd_m-gradients"),
    Mutation(_DESCENT, "if evaluation and config.eval_steps else", "if evaluation else", _MIRROR, "steps_of_training"),
    Mutation(
        _DESCENT,
        "times, 16, scaled_sinusoidal_features",
        "times, 16, lambda x, size: 4 * scaled_sinusoidal_features(x, size)",
        _HELD,
        "authors and fpmd_m-losses",
    ),
    Mutation(
        _DESCENT,
        "jnp.clip(standard, -clip, clip) / ",
        "jnp.clip(standard, -clip, clip) * ",
        _MIRROR,
        "weights_by_hand",
    ),
    Mutation(_DESCENT, "gap -= state", "gap += state", _MIRROR, "temperature_seeks"),
    Mutation(_DESCENT, "jnp.mean(weights * generator", "jnp.mean(generator", _MIRROR, "weights_scale"),
    Mutation(_DESCENT, 'state.hyper["reward_scale"] * batch', "batch", _MIRROR, "meet_the_critics and fpmd_m"),
    Mutation("agents/fpmd_m.py", "points = points - ", "points = points + ", _MIRROR, "true_field_leads"),
    Mutation("agents/fpmd_m.py", "steps if config.divide_steps else 1", "1", _MIRROR, "its_share_of_the_path"),
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
    Mutation("agents/dpmd.py", "math.sqrt(1 - schedule[-1])", "math.sqrt(schedule[-1])", _DIFFUSION, "starts_from"),
    Mutation("flowrl/diffusion.py", "+ 0.008) / 1.008", "+ 0.008)", _DIFFUSION, "cosine_schedule"),
    Mutation("flowrl/diffusion.py", "beta * (1 - before) / (1 - left)", "beta", _DIFFUSION, "one_step_by_hand"),
    Mutation("flowrl/data/mujoco_sets.py", "returns >= returns.max() / 3", "returns >= returns[0]", _SETS, "who_acts"),
    Mutation("flowrl/data/mujoco_sets.py", "not terminated and (", "(", _SETS, "stretch_is_episodes and uniform"),
    Mutation(_CALIBRATED, "jnp.maximum(proposal_values", "jnp.minimum(proposal_values", _CAL_QL, "gap_by_hand"),
    Mutation(_CALIBRATED, "values - log_densities, axis=1", "values + log_densities, axis=1", _CAL_QL, "gap_by_hand"),
    Mutation(_CALIBRATED, "min(axis=1).max(axis=0)", "max(axis=0).min(axis=0)", _CAL_QL, _reference("released")),
    Mutation(
        _CALIBRATED,
        "actor_losses(networks, spec, params, before",
        "actor_losses(networks, spec, params, state",
        _CAL_QL,
        _reference("released"),
    ),
    Mutation(
        _CALIBRATED, 'params["temperature"]["log"] * gap', "temperature(params) * gap", _CAL_QL, _reference("plain")
    ),
    Mutation(_CALIBRATED, "loss = jnp.sum(td", "loss = jnp.mean(td", _CAL_QL, _reference("plain_backup")),
    Mutation(_CALIBRATED, "[key] * 5) if config.one_draw else", "[key] * 5) if True else", _CAL_QL, "draws_of_its_own"),
    Mutation(_CALIBRATED, "loss = -jnp.mean(multiplier", "loss = jnp.mean(multiplier", _CAL_QL, "multiplier_rises"),
    Mutation(_CALIBRATED, "constant(-1.0)", "constant(0.0)", _CAL_QL, "scale_and_offset"),
    Mutation(_CALIBRATED, "(-20.0, 2.0)", "(-5.0, 2.0)", _CAL_QL, "scale_and_offset"),
    Mutation(_CALIBRATED, "orthogonal(0.01)", "orthogonal(1.0)", _CAL_QL, "kernels_are_orthogonal"),
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
        'key=lambda row: -row["mean"]',
        'key=lambda row: -max(row["per_seed"].values())',
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
    Mutation(_HOSTS, "watchdog.start()", "pass", _SPREAD, "does_not_come"),
    Mutation(_HOSTS, "row[:size].tobytes()", "row.tobytes()", _INSTALLED, "any_length"),
    Mutation(_HOSTS, "int(sizes.max())", "int(own.size)", _INSTALLED, "any_length"),
    Mutation(_HOSTS, "{next(_rounds)}", "{0}", _INSTALLED, "any_length"),
    Mutation(_HOSTS, "number != found[0]", "number > found[0]", _INSTALLED, "unequal_devices"),
    # what is installed, and with what
    Mutation(
        _HOSTS,
        "from orbax.checkpoint import multihost",
        "from orbax.checkpoint._src.multihost import multihost",
        _INSTALLED,
        "nothing_private",
    ),
    Mutation(_SETUP, "flowrl.presets = *.csv\n", "", _INSTALLED, "the_distribution"),
    Mutation(_SETUP, "    flowrl.*\n", "    flowrl.data\n    flowrl.presets\n", _INSTALLED, "the_distribution"),
    Mutation(_SETUP, "error:::(flowrl|", "error:::(flow_rl|", _INSTALLED, "of_our_own"),
    Mutation(_SETUP, "error:::(flowrl|", "error:::(|", _INSTALLED, "of_a_dependency"),
    Mutation(_SETUP, "    ignore::DeprecationWarning\n", "", _INSTALLED, "of_a_dependency"),
    Mutation("requirements.txt", "scipy>=1.14", "scipy>=9", _INSTALLED, "every_requirement"),
    Mutation("flowrl/extras.py", '("ogbench", "dm_control")', '("ogbench",)', _INSTALLED, "with_the_remedy"),
    Mutation("flowrl/envs.py", "{module or 'ogbench'}", "{module}", _INSTALLED, "with_the_remedy"),
    Mutation(
        "flowrl/provenance.py", "importlib.metadata.PackageNotFoundError", "KeyError", _INSTALLED, "has_no_version"
    ),
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
    Mutation(_WORKERS, "row or anything for row in rows", "row for row in rows if row", _EVALUATED, _KILLED),
    Mutation(_WORKERS, "self._deaths[worker] += 1", "pass", _EVALUATED, "again_and_again"),
    Mutation(_WORKERS, "process.exitcode >= 0", "False", _EVALUATED, "by_itself"),
    Mutation("flowrl/evaluate.py", "np.where(good, values, 0)", "values", _EVALUATED, "not_finite"),
    # environments as their users see them
    Mutation(_EPISODES, "Actions(env.action_space,", "Actions(env.unwrapped.action_space,", _SEEN, "users_see"),
    Mutation(_SPACES, "np.minimum(np.maximum(action, self.low), self.high)", "action", _SEEN, "last_bit"),
    Mutation(_SPACES, "low * (1.0 - share) + high * share", "low + (high - low) * share", _SEEN, "last_bit"),
    Mutation(_SPACES, ".astype(self._dtype)", "", _SEEN, "last_bit"),
    Mutation(_SPACES, "played.reshape(self._shape)", "played", _SEEN, "last_bit"),
    Mutation(_SPACES, "played.reshape(self._shape)", "played.reshape(self._shape, order='F')", _SEEN, "row_by_row"),
    Mutation(_SPACES, " or not np.issubdtype(space.dtype, np.floating)", "", _SEEN, "cannot_be_played"),
    Mutation(_SPACES, "    if flat.any():", "    if False:", _SEEN, "cannot_be_played"),
    Mutation(_SPACES, "if not np.isfinite(room).all():", "if False:", _SEEN, "cannot_be_played"),
    Mutation(_SPACES, "2 / room", "room", _SEEN, "cannot_be_played"),
    Mutation(_SPACES, "sorted(space.spaces, key=str)", "[*space.spaces][::-1]", _SEEN, "become_vectors"),
    Mutation(_SPACES, "array - space.start, int(space.n)", "array, int(space.n)", _SEEN, "become_vectors"),
    Mutation(_SPACES, "if len(space.shape) > 2 or", "if len(space.shape) > 3 or", _SEEN, "refused_by_name"),
    Mutation(_SPACES, "0 < size <= LARGEST", "0 < size", _SEEN, "refused_by_name"),
    Mutation(_SPACES, "array.shape[: array.ndim - len(shape)]", "()", _SEEN, "leading_axes"),
    Mutation(_EPISODES, "        random.seed(seed)\n", "", _SEEN, "generators_are"),
    Mutation(_EPISODES, "            random.setstate(self._random)\n", "            pass\n", _SEEN, "generators_are"),
    Mutation(
        _EPISODES, "            for before in self._played:", "            for before in ():", _SEEN, "generators_are"
    ),
    Mutation(_EPISODES, "                space.seed(seed)\n", "                pass\n", _SEEN, "samples_from"),
    Mutation(_EPISODES, '("success", "is_success")', '("success",)', _SEEN, "any_step"),
    Mutation(_WORKERS, "if told == told and not self._successes[slot] >= told:", "if told == told:", _SEEN, "any_step"),
    Mutation(_WORKERS, "told == told and not", "not", _SEEN, "any_step"),
    Mutation(
        _WORKERS, "self._finish(slot, str(error))\n                continue", "raise", _SEEN, "break_off_their_episode"
    ),
    Mutation(_WORKERS, "self._end(slot, str(error))\n                continue", "raise", _SEEN, "at_the_reset"),
    Mutation(_EPISODES, "if not -LARGEST <= earned <= LARGEST:", "if earned != earned:", _SEEN, "cannot_sum"),
    Mutation(_EPISODES, "not observation.dot(observation) < LARGEST", "False", _SEEN, "leave_float32"),
    Mutation(_EPISODES, "np.isfinite(row.astype(np.float32))", "np.isfinite(row)", _SEEN, "leave_float32"),
    Mutation(_EPISODES, "            self._refuse_success(reached, info)", "            pass", _SEEN, "neither_true"),
    Mutation(_EPISODES, "observation.shape == self._shape)", "True)", _SEEN, "users_mistake"),
    Mutation(_EPISODES, "        if own:\n", "        if False:\n", _SEEN, "users_mistake"),
    Mutation(_EPISODES, "code.co_filename.startswith(_OURS)", "not code", _SEEN, "users_mistake"),
    Mutation(_EPISODES, "return any(isinstance(layer", "return True or any(isinstance(layer", _SEEN, "without_a_limit"),
    Mutation(_EPISODES, "for layer in _layers(env))", "for layer in [env])", _SEEN, "without_a_limit"),
    Mutation(_EPISODES, "mujoco.set_mju_user_warning(_mujoco_warning)", "pass", _SEEN, "leave_no_file"),
    Mutation(_ENVS, "made.step([0.0]", "len([0.0]", _SEEN, "before_the_training"),
    Mutation(_ENVS, "            sys.path.append(os.getcwd())\n", "            pass\n", _SEEN, "ones_own"),
    Mutation(_ENVS, "kwargs=kwargs, module=module)", "module='')", _SEEN, "ones_own"),
    Mutation(_ENVS, "; one of your own is named module:Name-v0, after", ", after", _SEEN, "come_with_the_remedy"),
    Mutation("flowrl/data/minari_sets.py", '{"spec": spec}', "dict(spec.kwargs)", _MINARI, "wrappers"),
    Mutation("flowrl/data/minari_sets.py", "if known.action_low and not", "if False and not", _MINARI, "wrappers"),
    Mutation("flowrl/data/minari_sets.py", "    spaces.require_box(space, str(path))\n", "", _MINARI, "are_refused"),
    Mutation(_ONLINE, "actions = played = np.where", "np.where", _ACTED, "diverging_policy"),
    Mutation(_SIDE, "reply.slot = i", "pass", _ACTED, "named_and_not_stored and async"),
    Mutation(
        _SIDE,
        "error.slot = i\n                raise\n            self._rows",
        "raise\n            self._rows",
        _ACTED,
        "named_and_not_stored and sync",
    ),
    Mutation(_SIDE, "with contextlib.suppress(OSError):  # one", "if True:  # one", _ACTED, "still_says_which"),
    Mutation(_WORKERS, "error if isinstance(error, UserError) else failed", "failed", _EVALUATED, "failing_worker"),
    Mutation(
        _WORKERS,
        "except (pickle.PicklingError, AttributeError, TypeError) as error",
        "except ZeroDivisionError as error",
        _EVALUATED,
        "cannot_be_sent",
    ),
    Mutation(_WORKERS, "    resource_tracker.ensure_running()", "    pass", _EVALUATED, "lets_them_through"),
    Mutation(
        _WORKERS, "    with interrupts_held():\n", "    with contextlib.nullcontext():\n", _EVALUATED, "first_moment"
    ),
    Mutation(
        _SUMMARY, "good = np.isfinite(returns)", "good = np.isfinite(returns) | True", _EVALUATED, "gives_no_numbers"
    ),
    Mutation(
        _SUMMARY,
        "            if good.any():\n                line",
        "            if True:\n                line",
        _EVALUATED,
        "any_finite",
    ),
    Mutation(_SUMMARY, "float(np.nan_to_num(told).mean())", "float(np.nanmean(told))", _EVALUATED, "judged_once"),
    Mutation(_SUMMARY, "with_success(lines) if any(", "[*lines] if any(", _EVALUATED, "judged_once"),
    Mutation("flowrl/run.py", "with_success(lines) if self.told else lines", "lines", _EVALUATED, "judged_once"),
    Mutation("flowrl/run.py", "        self.told = any(", "        any(", _EVALUATED, "judged_once"),
    Mutation(
        "flowrl/run.py",
        "        except EnvironmentFailed as error:",
        "        except ZeroDivisionError as error:",
        _EVALUATED,
        "how_it_goes_on",
    ),
    Mutation("flowrl/curves.py", "    runs = _sweeps_alike(runs)\n", "", _EVALUATED, "parts_of_a_sweep"),
    Mutation("flowrl/settings.py", "settings.max_episode_steps)\n", "None)\n", _EVALUATED, "belongs_to_the_run"),
    Mutation(
        "flowrl/evaluate.py",
        "        done += note(view.finished)\n        while",
        "        while",
        _EVALUATED,
        "from_the_start",
    ),
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
    Mutation("flowrl/machine.py", "*_left_of_cgroups(), ", "", _LIMITS, "narrowest_limit"),
    Mutation("flowrl/machine.py", ", *_left_of_ulimit()", "", _LIMITS, "narrowest_limit"),
    Mutation(_SWEEPS, "        estimates.require(made, runs=1)", "        pass", _LIMITS, "million_points"),
    Mutation(_SPREAD_OVER, "except (RuntimeError, AssertionError)", "except RuntimeError", _LIMITS, "a_platform"),
    Mutation("flowrl/errors.py", 'sys.modules["jax"].devices()', "pass", _TERMINAL, "jax_without"),
    Mutation("flowrl/envs.py", "            _import_without_opengl()\n", "            pass\n", _TERMINAL, "opengl"),
    Mutation(_CHECKPOINTS, "    log.setLevel(logging.CRITICAL)\n", "    pass\n", _RECORDED, "not_heard"),
    Mutation("flowrl/terminal.py", "isinstance(error.__cause__, BrokenPipeError)", "False", _TERMINAL, "nobody_reads"),
    Mutation("flowrl/terminal.py", '_PLAIN.get(sign, "?")', '"?"', _TERMINAL, "ascii"),
    Mutation("flowrl/run.py", "total, step, hidden", "total, 0, hidden", _BAD_INPUT, "bar_comes"),
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
    # files of a run that were changed
    Mutation(_RESUMING, "want.items() <= line.record.items()", "True", _RECORDED, "named_with_its_line"),
    Mutation(_RESUMING, "itertools.zip_longest(kept, wanted)", "zip(kept, wanted)", _RECORDED, "named_with_its_line"),
    Mutation(_RESUMING, '**run, "mode": mode,', "**run,", _RECORDED, "in_their_order"),
    Mutation(
        _RESUMING, ' or line.record["step"] < reached.step, log.lines', ", log.lines", _RECORDED, "named_with_its_line"
    ),
    Mutation(_RESUMING, "reached.step if kind", "reached.step - 1 if kind", _RECORDED, "written_again"),
    Mutation(_RESUMING, "or reached.evaluated else", "else", _RECORDED, "named_with_its_line or expected"),
    Mutation(_RESUMING, "parts[step > switch]", "parts[0]", _RECORDED, "every_kind_of_run"),
    Mutation(_RESUMING, "        if cut.dropped:\n", "        if False:\n", _RECORDED, "kept_beside"),
    Mutation(_RESUMING, '(f"{log.torn}\\n" if log.torn else "")', '""', _RECORDED, "kept_beside"),
    Mutation(_RESUMING, "reached.step > total", "False", _RECORDED, "fewer_steps"),
    Mutation("flowrl/run.py", "        resuming.require_unbegun(self.plan.folder)\n", "", _RECORDED, "not_begun_anew"),
    Mutation(
        "flowrl/run.py",
        "        record_changes(self.plan)\n        resuming.apply(cuts)\n",
        "        resuming.apply(cuts)\n        record_changes(self.plan)\n",
        _RECORDED,
        "given_more_steps and apply",
    ),
    Mutation(_FORMAT, 'last.startswith("{") and', "", _RECORDED, "named_with_its_line"),
    Mutation(_FORMAT, "        torn = last\n", "        texts.append(last)\n", _RECORDED, "kept_beside"),
    Mutation(_FORMAT, "<= newest.get(key, 0)", "< newest.get(key, 0)", _RECORDED, "named_with_its_line"),
    Mutation(_FORMAT, "_all(_EVALUATION, _scored)", "_EVALUATION", _RECORDED, "named_with_its_line"),
    Mutation(_SCHEMA, "parse_constant=refuse", "parse_constant=float", _RECORDED, "named_with_its_line or is_none"),
    Mutation(_SCHEMA, " and not isinstance(value, bool)", "", _RECORDED, "named_with_its_line"),
    Mutation(_SCHEMA, "            elif name not in optional:\n", "            elif False:\n", _RECORDED, "its_field"),
    Mutation(_SCHEMA, 'raise Mismatch(f"{place} is no setting")', "return", _RECORDED, "changed_config"),
    Mutation("flowrl/settings.py", "        check(made)\n", "", _RECORDED, "changed_config"),
    Mutation("flowrl/settings.py", 'if made.seeds != stored["seeds"]:', "if False:", _RECORDED, "changed_config"),
    Mutation("flowrl/settings.py", "_require_sweepable(module.Config, grid)\n", "pass\n", _RECORDED, "changed_config"),
    Mutation(_SWEEPS, "if _runs(parts) != _runs(groups(before)):", "if False:", _RECORDED, "changed_sweep"),
    Mutation(_SWEEPS, "(folder / SWEEP).unlink(missing_ok=True)", "pass", _RECORDED, "never_began and recorded"),
    Mutation(_FILES, "if made and unused(folder):", "if False:", _RECORDED, "never_began"),
    Mutation(_FILES, "if not os.path.samestat(", "if False and os.path.samestat(", _RECORDED, "takes_away"),
    Mutation(_CHECKPOINTS, "inspect.iscoroutine(unraisable.object)", "False", _RECORDED, "not_heard"),
    Mutation(
        _CHECKPOINTS,
        "    yield\n    sys.unraisablehook = previous\n",
        "    try:\n        yield\n    finally:\n        sys.unraisablehook = previous\n",
        _RECORDED,
        "not_heard",
    ),
    Mutation("flowrl/settings.py", 'if stored["git_commit"] else ""', "", _RECORDED, "the_commit"),
    Mutation(
        "flowrl/settings.py", "put the right file back{commit}", "put the right file back", _RECORDED, "the_commit"
    ),
    Mutation(_CHECKPOINTS, "Exception as error:  # orbax", "OSError as error:  # orbax", _RECORDED, "any_part"),
    Mutation(_CHECKPOINTS, "            if not path.is_dir():", "            if False:", _RECORDED, "is_no_checkpoint"),
    Mutation(_CHECKPOINTS, "        if not read_only:\n", "        if True:\n", _RECORDED, "leave_the_folder"),
    Mutation(_CHECKPOINTS, "os.rename(self.folder / str(step), aside)", "pass", _RECORDED, "replaced_or_stays"),
    Mutation(
        _CHECKPOINTS, "                os.rename(aside, self.folder / str(step))\n", "", _RECORDED, "RuntimeError"
    ),
    Mutation(_READ, "        if counts[step] != each:\n", "        if False:\n", _PLOTTED, "averaged_around"),
    Mutation(
        _READ,
        'if sum("not_finite" not in line for line in told) <',
        'if 0 * sum("not_finite" not in line for line in told) > 0 *',
        _PLOTTED,
        "averaged_around",
    ),
    Mutation(
        _READ,
        "            except LeftOut as error:\n                left_out.append(error)\n",
        "            except NotEvaluated as error:\n                left_out.append(error)\n",
        _PLOTTED,
        "left_out_with_a_warning",
    ),
    Mutation(_READ, "and end(run) < end(other)]", "and end(run) > end(other)]", _PLOTTED, "counts_once"),
    Mutation(_READ, "    marked |= {", "    marked or {", _PLOTTED, "every_kind_of_picture"),
    Mutation(_READ, 'for line in lines if "diverged" in line', "for line in ()", _PLOTTED, "every_kind_of_picture"),
    Mutation(_READ, "if seeds := sorted(group.diverged):", "if seeds := []:", _PLOTTED, "every_kind_of_picture"),
    Mutation(
        "flowrl/figures.py",
        "for seed in diverged], **CROSS)",
        'for seed in diverged], ".")',
        _PLOTTED,
        "every_kind_of_picture and sensitivity",
    ),
    Mutation("flowrl/comparisons.py", "(first, *rest[:1])", "()", _COMPARISONS, "single_seed"),
    Mutation("flowrl/comparisons.py", "(first, *rest[:1])", "(first, *rest[:1])[1:]", _REPORTED, "from_one_seed"),
    Mutation("flowrl/comparisons.py", "(first, *rest[:1])", "(first,)", _COMPARISONS, "single_seed"),
    Mutation(_SWEEPS, "if (first := best(rows)) is None", "if (first := rows[0]) is None", _SWEPT, "from_one_seed"),
    Mutation("flowrl/programs.py", "raw(step)[0]", "raw()[0]", _AGAIN, "another_checkpoint"),
    Mutation("flowrl/programs.py", "    checkpoints.require_fit(like, states, step)\n", "", _AGAIN, "be_loaded"),
    Mutation(
        "experiments/evaluate.py",
        "trial.seed for trial in plan.trials], jnp",
        "0 for trial in plan.trials], jnp",
        _AGAIN,
        "another_checkpoint",
    ),
    Mutation("experiments/evaluate.py", "given.eval_episodes is None", "True", _AGAIN, "another_checkpoint"),
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
