"""Network modules against plain formulas, and the sizes that the papers state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowrl.gaussian import SquashedGaussian

from flowrl.agent import Spec
from flowrl.agents import gc_sscp
from flowrl.networks import (
    MLP,
    FourierFeatures,
    GoalRep,
    SplitDense,
    Value,
    ensemble,
    glorot,
    length_normalize,
    mish,
    represent,
    represented_value,
    side_by_side,
    truncated,
)

KEY = jax.random.key(0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def count(params: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_split_dense_equals_a_dense_layer_on_the_concatenation(run: object) -> None:
    parts = normal(1, 6, 3), normal(2, 6, 1), normal(3, 1, 4)
    layer = SplitDense(5)
    params = layer.init(KEY, *parts)
    params = {"params": {**params["params"], "bias": normal(4, 5)}}
    concatenated = np.concatenate([parts[0], parts[1], np.repeat(parts[2], 6, axis=0)], axis=-1)
    expected = nn.Dense(5).apply(params, concatenated)
    by_hand = concatenated.astype(np.float64) @ np.asarray(params["params"]["kernel"]) + params["params"]["bias"]
    np.testing.assert_allclose(run(layer.apply)(params, *parts), expected, atol=1e-5)  # type: ignore[operator]
    np.testing.assert_allclose(expected, by_hand, atol=1e-5)


def test_split_dense_starts_as_a_dense_layer() -> None:
    # The kernel's range must come from the whole fan-in, not from each part's.
    params = SplitDense(32).init(KEY, normal(1, 1, 30), normal(2, 1, 34))["params"]
    assert params["kernel"].shape == (64, 32)
    limit = np.sqrt(3 / ((64 + 32) / 2))  # variance 1 / mean fan: uniform on ±√3·σ
    assert 0.97 * limit < np.abs(params["kernel"]).max() <= limit
    np.testing.assert_array_equal(params["bias"], 0)


def test_glorot_is_uniform_by_the_mean_fan_and_scales_the_variance() -> None:
    plain, scaled = glorot()(KEY, (20, 60)), glorot(1e-2)(KEY, (20, 60))
    np.testing.assert_allclose(plain, nn.initializers.xavier_uniform()(KEY, (20, 60)))
    np.testing.assert_allclose(scaled, 0.1 * plain, rtol=1e-6)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit, jax.vmap], ids=["plain", "jit", "vmap"])
def test_mish_equals_jax_nn_mish_in_values_and_gradients(run: object) -> None:
    x = jnp.concatenate([jnp.linspace(-30, 30, 1201), jnp.array([-100.0, 100.0, 0.0, 19.999, 20.001, -87.0, 88.0])])
    ours, theirs = run(mish)(x), jax.vmap(jax.nn.mish)(x)  # type: ignore[operator]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(mish))(x), jax.vmap(jax.grad(jax.nn.mish))(x), rtol=1e-5, atol=1e-6)


def test_mish_at_its_extremes() -> None:
    # x·tanh(log(1 + e^x)): at 100 the tanh is 1, at −100 it is e^−100 = 4e-44; slope 1 and 0.
    values, slopes = jax.vmap(jax.value_and_grad(mish))(jnp.array([-100.0, 0.0, 100.0]))
    np.testing.assert_allclose(values, [0, 0, 100], atol=1e-30)
    np.testing.assert_allclose(slopes, [0, 0.6, 1], atol=1e-6)  # at 0: tanh(log 2) = 3/5


def test_mish_beyond_20_loses_no_gradient() -> None:
    np.testing.assert_allclose(jax.vmap(jax.grad(mish))(jnp.array([20.5, 50.0, 1e4])), 1, rtol=1e-6)


def test_length_normalize() -> None:
    # [3, 4] has length 5 and becomes √2·[0.6, 0.8]; each vector on its own.
    expected = np.sqrt(2) * np.array([[0.6, 0.8], [-1, 0]])
    np.testing.assert_allclose(length_normalize(jnp.array([[3.0, 4.0], [-1e-3, 0.0]])), expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(length_normalize(normal(1, 2, 7, 10)), axis=-1), np.sqrt(10), rtol=1e-6)


def test_length_normalize_is_finite_at_zero() -> None:
    # φ([0; 0]) is exactly zero before training, since biases start at zero: an episode may begin at the origin.
    value, grad = jax.value_and_grad(lambda x: length_normalize(x).sum())(jnp.zeros(4))
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()


def test_length_normalize_has_no_gradient_along_its_input() -> None:
    x = normal(1, 6)
    _, tangent = jax.jvp(length_normalize, (x,), (x,))
    np.testing.assert_allclose(tangent, 0, atol=1e-6)


def test_fourier_features() -> None:
    module, x = FourierFeatures(), jnp.array([[0.0], [0.3], [2.0]])
    params = module.init(KEY, x)
    kernel = np.asarray(params["params"]["kernel"], np.float64)
    assert kernel.shape == (1, 64)
    # 64 draws of N(0, 0.2²): the sample deviation has a standard error of 0.018.
    assert 0.1 < kernel.std() < 0.3
    angles = 2 * np.pi * np.asarray(x, np.float64) * kernel
    np.testing.assert_allclose(
        module.apply(params, x), np.concatenate([np.cos(angles), np.sin(angles)], axis=-1), atol=1e-5
    )
    assert np.abs(jax.grad(lambda p: module.apply(p, x).sum())(params)["params"]["kernel"]).min() > 0


def test_mlp_is_dense_activation_norm_with_a_linear_end() -> None:
    module, x, y = MLP((7, 5), 3, activation=mish, layer_norm=True), normal(1, 4, 2), normal(2, 4, 3)
    params = jax.tree.map(lambda p: p + 0.1 * normal(p.size, *p.shape), module.init(KEY, x, y))
    p = {name: jax.tree.map(np.asarray, layer) for name, layer in params["params"].items()}

    def normed(h: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
        h = np.asarray(jax.nn.mish(h))
        centred = h - h.mean(axis=-1, keepdims=True)
        return centred / np.sqrt(h.var(axis=-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]

    h = np.concatenate([x, y], axis=-1) @ p["SplitDense_0"]["kernel"] + p["SplitDense_0"]["bias"]
    h = normed(h, p["LayerNorm_0"]) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    h = normed(h, p["LayerNorm_1"]) @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    np.testing.assert_allclose(module.apply(params, x, y), h, atol=1e-4)


def test_mlp_without_hidden_layers_is_linear_in_the_concatenation() -> None:
    module, x, y = MLP((), 2), normal(1, 4, 2), normal(2, 4, 3)
    params = module.init(KEY, x, y)
    kernel = params["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(module.apply(params, x, y), np.concatenate([x, y], -1) @ kernel, atol=1e-6)


def test_final_scale_shrinks_the_last_kernel_only() -> None:
    x = normal(1, 1, 4)
    plain, small = (MLP((8,), 3, final_scale=scale).init(KEY, x)["params"] for scale in (1.0, 1e-2))
    np.testing.assert_allclose(small["Dense_0"]["kernel"], 0.1 * plain["Dense_0"]["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(small["SplitDense_0"]["kernel"], plain["SplitDense_0"]["kernel"])


def test_truncated_kernels_are_narrower_than_their_fan_in_says() -> None:
    """A unit Gaussian cut at ±2 has the deviation 0.8796."""
    kernel = np.asarray(truncated(KEY, (100, 400)))
    assert 0.199 < np.abs(kernel).max() <= 0.2
    np.testing.assert_allclose(kernel.std(), 0.08796, rtol=0.02)


def test_the_heads_of_a_squashed_gaussian_start_as_layers_of_their_own() -> None:
    # A uniform kernel of variance 0.01 / mean(fan-in, fan-out) ends at the root of thrice that, 0.01·2·3 / (2 + 6); as
    # one layer of twelve outputs it would end at 0.01·2·3 / (2 + 12).
    actor = SquashedGaussian((2,), 6)
    kernel = actor.init(KEY, jnp.zeros((1, 5)))["params"]["MLP_0"]["Dense_0"]["kernel"]
    assert kernel.shape == (2, 12)
    many = np.stack([side_by_side(2, glorot(1e-2))(jax.random.key(i), (2, 12)) for i in range(200)])
    for half in (many[..., :6], many[..., 6:]):
        np.testing.assert_allclose(np.abs(half).max(), np.sqrt(0.06 / 8), rtol=0.01)
    assert np.abs(kernel).max() > np.sqrt(0.06 / 14)
    assert not np.allclose(many[..., :6], many[..., 6:])


def test_kernels_have_the_initialisation_that_is_asked_for() -> None:
    constant, x = nn.initializers.constant, normal(1, 1, 4)
    inits = {"kernel_init": constant(2.0), "final_init": constant(3.0)}
    for module in (MLP((8, 8), 3, **inits), Value((8, 8), **inits)):
        params = module.init(KEY, x)["params"]
        layers = params.get("MLP_0", params)
        assert (layers["SplitDense_0"]["kernel"] == 2).all()
        assert (layers["Dense_0"]["kernel"] == 2).all()
        assert (layers["Dense_1"]["kernel"] == 3).all()


def test_value_networks_use_gelu_and_layer_norm() -> None:
    x = normal(1, 3, 4)
    params = Value((8,)).init(KEY, x)
    expected = MLP((8,), 1, activation=nn.gelu, layer_norm=True).apply({"params": params["params"]["MLP_0"]}, x)
    np.testing.assert_allclose(Value((8,)).apply(params, x), expected[:, 0], atol=1e-6)


def test_ensemble_members_differ_and_are_each_a_network() -> None:
    x, y = normal(1, 5, 3), normal(2, 5, 2)
    twin = ensemble(Value)((8, 8))
    params = twin.init(KEY, x, y)
    values = twin.apply(params, x, y)
    assert values.shape == (2, 5)
    for layer in ("SplitDense_0", "Dense_0", "Dense_1"):
        first, second = params["params"]["MLP_0"][layer]["kernel"]
        assert (first != second).all()
    for member in (0, 1):
        own = jax.tree.map(lambda p, i=member: p[i], params)
        np.testing.assert_allclose(Value((8, 8)).apply(own, x, y), values[member], atol=1e-5)
    assert ensemble(Value, 3)((8,)).init_with_output(KEY, x, y)[0].shape == (3, 5)


def test_goal_rep_has_length_root_of_its_size() -> None:
    module, x, y = GoalRep((16, 16), 10), normal(1, 5, 3), normal(2, 5, 2)
    params = module.init(KEY, x, y)
    reps = module.apply(params, x, y)
    assert reps.shape == (5, 10)
    np.testing.assert_allclose(np.linalg.norm(reps, axis=-1), np.sqrt(10), rtol=1e-5)
    assert not np.allclose(module.apply(params, x, y[::-1]), reps)
    assert not np.allclose(module.apply(params, x[::-1], y), reps)


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_gc_sscp_has_the_networks_of_the_paper() -> None:
    # State of 29, action of 8 (antmaze); 3×512 with LayerNorm everywhere, φ 10-dimensional.
    agent = gc_sscp.make(gc_sscp.Config(), Spec(29, 8, 29))
    params = jax.eval_shape(agent.init, KEY).params
    norm = 2 * 512
    trunk = norm + 2 * (dense(512, 512) + norm)
    assert count(params["goal_rep"]) == dense(29 + 29, 512) + trunk + dense(512, 10)
    assert count(params["value"]) == 2 * (dense(29 + 10, 512) + trunk + dense(512, 1))
    # One shared Fourier layer of 64 frequencies; for t and for d an MLP 128 → 128 → 128 with LayerNorm; the trunk reads
    # the state, ψ, the noise of action and representation, and the summed embeddings.
    embeddings = 64 + 2 * (dense(128, 128) + 2 * 128 + dense(128, 128))
    assert count(params["actor"]) == embeddings + dense(29 + 10 + 8 + 10 + 128, 512) + trunk + dense(512, 8 + 10)
    assert params["actor"]["params"]["TimePairEmbedding_0"]["FourierFeatures_0"]["kernel"].shape == (1, 64)


def test_gc_sscp_actor_adds_its_output_to_the_noise_and_reads_all_inputs() -> None:
    actor = gc_sscp.Actor((16, 16), 2, 4)
    x, rep, noise = normal(1, 5, 3), normal(2, 5, 4), gc_sscp.Pair(normal(3, 5, 2), normal(4, 5, 4))
    params = actor.init(KEY, x, rep, noise, 0, 2)
    zeroed = jax.tree.map(jnp.zeros_like, params)
    for part, same in zip(actor.apply(zeroed, x, rep, noise, 0, 2), noise, strict=True):
        np.testing.assert_array_equal(part, same)
    base = actor.apply(params, x, rep, noise, 0, 1)
    assert (base.actions.shape, base.reps.shape) == ((5, 2), (5, 4))
    others = [
        actor.apply(params, x + 1, rep, noise, 0, 1),
        actor.apply(params, x, rep + 1, noise, 0, 1),
        actor.apply(params, x, rep, noise, 1, 1),
        actor.apply(params, x, rep, noise, 0, 2),
    ]
    for other in others:
        assert (np.abs(other.actions - base.actions) > 1e-6).all()
        assert (np.abs(other.reps - base.reps) > 1e-6).all()
    # The residual, output − noise, depends on both parts of the noise.
    moved = actor.apply(params, x, rep, noise._replace(reps=noise.reps + 1), 0, 1)
    assert (np.abs(moved.actions - base.actions) > 1e-6).all()
    # One embedding serves the whole batch; a row's output does not depend on the other rows.
    alone = actor.apply(params, x[:1], rep[:1], jax.tree.map(lambda n: n[:1], noise), 0, 1)
    np.testing.assert_allclose(alone.actions, base.actions[:1], atol=1e-5)


def test_level_and_depth_have_separate_embeddings() -> None:
    # (t, d) = (1, 2) and (2, 1) would look alike if both went through one MLP and were summed.
    actor = gc_sscp.Actor((16,), 2, 4)
    x, rep, noise = normal(1, 5, 3), normal(2, 5, 4), gc_sscp.Pair(normal(3, 5, 2), normal(4, 5, 4))
    params = actor.init(KEY, x, rep, noise, 0, 2)
    one, other = actor.apply(params, x, rep, noise, 1, 2), actor.apply(params, x, rep, noise, 2, 1)
    assert np.abs(one.actions - other.actions).max() > 1e-4


def test_represented_value_is_the_value_of_the_representation() -> None:
    agent = gc_sscp.make(gc_sscp.Config(hidden_dims=(8,), rep_dim=4), Spec(3, 2, 3))
    networks, params = agent.init.args[0], agent.init(KEY).params  # type: ignore[attr-defined]
    x, g = normal(1, 5, 3), normal(2, 5, 3)
    reps = networks.goal_rep.apply(params["goal_rep"], x, g)
    np.testing.assert_allclose(represent(networks, params, x, g), reps)
    expected = networks.value.apply(params["value"], x, reps)
    assert expected.shape == (2, 5)
    np.testing.assert_allclose(represented_value(networks, params, x, g), expected)
