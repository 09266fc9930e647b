"""What networks make of goals and times, against plain formulas, and the sizes that the papers state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import GOAL_SPEC, config_of, networks_of

from flowrl import agents
from flowrl.agents import gc_sscp
from flowrl.encoders import (
    FourierFeatures,
    GoalRep,
    JumpMLP,
    TimedMLP,
    TimePairEmbedding,
    cosine_features,
    length_normalize,
    represented_value,
    scaled_sinusoidal_features,
    sinusoidal_features,
)
from flowrl.networks import MLP, Spec, mish

KEY = jax.random.key(0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def count(params: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


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


@pytest.mark.slow
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
    config = agents.default("gc_sscp")
    params = jax.eval_shape(agents.build("gc_sscp", config, Spec.of_sizes(29, 8, 29)).init, KEY, config).params
    norm = 2 * 512
    trunk = norm + 2 * (dense(512, 512) + norm)
    assert count(params["goal_rep"]) == dense(29 + 29, 512) + trunk + dense(512, 10)
    assert count(params["value"]) == 2 * (dense(29 + 10, 512) + trunk + dense(512, 1))
    # One shared Fourier layer of 64 frequencies; for t and for d an MLP 128 → 128 → 128 with LayerNorm; the trunk reads
    # the state, ψ, the noise of action and representation, and the summed embeddings.
    embeddings = 64 + 2 * (dense(128, 128) + 2 * 128 + dense(128, 128))
    assert count(params["actor"]) == embeddings + dense(29 + 10 + 8 + 10 + 128, 512) + trunk + dense(512, 8 + 10)
    assert params["actor"]["params"]["TimePairEmbedding_0"]["FourierFeatures_0"]["kernel"].shape == (1, 64)


@functools.cache
def gc_sscp_networks() -> Any:
    config = config_of("gc_sscp", {"hidden_dims": (16, 16), "rep_dim": 4})
    agent = agents.build("gc_sscp", config, GOAL_SPEC)
    return networks_of(agent), jax.jit(agent.init)(KEY, config).params


@pytest.mark.slow
def test_gc_sscp_actor_adds_its_output_to_the_noise_and_reads_all_inputs() -> None:
    nets, params = gc_sscp_networks()
    x, rep, noise = normal(1, 5, 3), normal(2, 5, 4), gc_sscp.Pair(normal(3, 5, 2), normal(4, 5, 4))
    jump = functools.partial(gc_sscp.jump, nets)
    for part, same in zip(jump(jax.tree.map(jnp.zeros_like, params), x, rep, noise, 0, 2), noise, strict=True):
        np.testing.assert_array_equal(part, same)
    base = jump(params, x, rep, noise, 0, 1)
    assert (base.a.shape, base.rep.shape) == ((5, 2), (5, 4))
    others = [
        jump(params, x + 1, rep, noise, 0, 1),
        jump(params, x, rep + 1, noise, 0, 1),
        jump(params, x, rep, noise, 1, 1),
        jump(params, x, rep, noise, 0, 2),
    ]
    for other in others:
        assert (np.abs(other.a - base.a) > 1e-6).all()
        assert (np.abs(other.rep - base.rep) > 1e-6).all()
    # The residual, output − noise, depends on both parts of the noise.
    moved = jump(params, x, rep, noise._replace(rep=noise.rep + 1), 0, 1)
    assert (np.abs(moved.a - base.a) > 1e-6).all()
    # One embedding serves the whole batch; a row's output does not depend on the other rows.
    alone = jump(params, x[:1], rep[:1], jax.tree.map(lambda n: n[:1], noise), 0, 1)
    np.testing.assert_allclose(alone.a, base.a[:1], atol=1e-5)


def test_level_and_depth_have_separate_embeddings() -> None:
    # (t, d) = (1, 2) and (2, 1) would look alike if both went through one MLP and were summed.
    nets, params = gc_sscp_networks()
    x, rep, noise = normal(1, 5, 3), normal(2, 5, 4), gc_sscp.Pair(normal(3, 5, 2), normal(4, 5, 4))
    one, other = (gc_sscp.jump(nets, params, x, rep, noise, *jump) for jump in ((1, 2), (2, 1)))
    assert np.abs(one.a - other.a).max() > 1e-4


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_jump_is_an_mlp_of_its_inputs_and_of_its_embedding(layer_norm: bool) -> None:
    module, x, y = JumpMLP((8,), 2, 16, layer_norm), normal(1, 5, 3), normal(2, 5, 2)
    begin, size = normal(3, 5, 1), normal(4, 5, 1)
    params = module.init(KEY, x, y, begin, size)["params"]
    embedding = TimePairEmbedding(layer_norm, 16).apply({"params": params["TimePairEmbedding_0"]}, begin, size)
    mlp = MLP((8,), 2, activation=mish, layer_norm=layer_norm)
    expected = mlp.apply({"params": params["MLP_0"]}, x, y, embedding)
    np.testing.assert_allclose(module.apply({"params": params}, x, y, begin, size), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "expected"),
    # ω = 1 and 1/10,000 of size 4; or 1 and 10,000^(−½) = 1/100, all over √4.
    [
        (sinusoidal_features, [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)]),
        (cosine_features, [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)]),
        (scaled_sinusoidal_features, [np.sin(2) / 2, np.sin(0.02) / 2, np.cos(2) / 2, np.cos(0.02) / 2]),
    ],
)
def test_sinusoidal_features_by_hand(features: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(jax.jit(features, static_argnums=1)(jnp.array([[2.0]]), 4), [expected], rtol=1e-5)


def test_a_timed_mlp_embeds_each_time_by_layers_of_its_own() -> None:
    module, x, y = TimedMLP((8,), 2, ("begin", "time"), 4), normal(1, 5, 3), normal(2, 5, 2)
    times = normal(3, 5, 1), normal(4, 5, 1)
    params = module.init(KEY, x, y, *times)["params"]
    assert set(params) == {"begin", "time", "MLP_0"}
    embed = MLP((8,), 4, activation=mish)
    embeddings = [
        embed.apply({"params": params[name]}, sinusoidal_features(time, 4))
        for name, time in zip(("begin", "time"), times, strict=True)
    ]
    expected = MLP((8,), 2, activation=mish).apply({"params": params["MLP_0"]}, y, x, *embeddings)
    np.testing.assert_allclose(module.apply({"params": params}, x, y, *times), expected, atol=1e-6)


def test_represented_value_is_the_value_of_the_representation() -> None:
    nets, params = gc_sscp_networks()
    x, g = normal(1, 5, 3), normal(2, 5, 3)
    expected = nets.value(params, x, nets.goal_rep(params, x, g))
    assert expected.shape == (2, 5)
    np.testing.assert_allclose(represented_value(nets, params, x, g), expected)


FAULTS = {
    "flowrl/encoders.py": [
        (" * jnp.sqrt(x.shape[-1])", "", "test_length_normalize"),
        (
            "kernel\n        return jnp.concatenate([jnp.cos(",
            "kernel\n        return jnp.concatenate([jnp.sin(",
            "test_fourier_features",
        ),
        (
            'name="second")(features(second))',
            'name="second")(features(first))',
            "test_gc_sscp_actor_adds_its_output_to_the_noise_and_reads_all_inputs",
        ),
        ("jnp.cos(angles)], axis=-1)\n", "jnp.sin(angles)], axis=-1)\n", "test_sinusoidal_features_by_hand"),
        ("(-jnp.arange(size // 2) / (", "(-jnp.arange(size // 2) / (-1 + ", "test_sinusoidal_features_by_hand"),
        (
            "[jnp.cos(angles), jnp.sin(angles)], axis=-1)\n\n\ndef",
            "[jnp.cos(angles), angles], axis=-1)\n\n\ndef",
            "test_sinusoidal_features_by_hand",
        ),
        ("size // 2, axis=-1)", "0, axis=-1)", "test_sinusoidal_features_by_hand"),
        (" / jnp.sqrt(size)", "", "test_sinusoidal_features_by_hand"),
    ],
}
