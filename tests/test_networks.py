"""Network modules against plain formulas, and networks that agents call by name."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen.initializers import orthogonal as flaxs
from small_agents import AT_LEISURE

from flowrl.networks import (
    MLP,
    Network,
    Spec,
    SplitDense,
    Value,
    ensemble,
    glorot,
    mish,
    named,
    orthogonal,
    side_by_side,
    truncated,
    vector,
)
from flowrl.policies import SquashedGaussian

KEY = jax.random.key(0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


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
    # In haste XLA's exp is less exact.
    slopes, expected = (jax.jit(jax.vmap(jax.grad(f)), compiler_options=AT_LEISURE)(x) for f in (mish, jax.nn.mish))
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-6)


def test_mish_at_its_extremes() -> None:
    # x·tanh(log(1 + e^x)): at 100 the tanh is 1, at −100 it is e^−100 = 4e-44; slope 1 and 0.
    values, slopes = jax.vmap(jax.value_and_grad(mish))(jnp.array([-100.0, 0.0, 100.0]))
    np.testing.assert_allclose(values, [0, 0, 100], atol=1e-30)
    np.testing.assert_allclose(slopes, [0, 0.6, 1], atol=1e-6)  # at 0: tanh(log 2) = 3/5


def test_mish_beyond_20_loses_no_gradient() -> None:
    np.testing.assert_allclose(jax.vmap(jax.grad(mish))(jnp.array([20.5, 50.0, 1e4])), 1, rtol=1e-6)


@pytest.mark.slow
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
    many = np.stack([side_by_side((6, 6), glorot(1e-2))(jax.random.key(i), (2, 12)) for i in range(200)])
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


@pytest.mark.slow
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


def test_ensembles_may_have_inputs_of_their_own() -> None:
    x, y = normal(1, 5, 3), normal(2, 2, 5, 2)
    params = ensemble(Value)((8,)).init(KEY, x, y[0])
    apart = ensemble(Value, in_axes=(None, 0))((8,)).apply(params, x, y)
    for i in (0, 1):
        np.testing.assert_allclose(apart[i], ensemble(Value)((8,)).apply(params, x, y[i])[i], atol=1e-6)


# ------------------------------------------------------------------------------------------------ called by name


def test_a_spec_has_the_shapes_of_inputs_in_batches_of_one() -> None:
    assert [x.shape for x in Spec.of_sizes(3, 2, 4).inputs()] == [(1, 3), (1, 2), (1, 4), (1, 1)]
    assert Spec.of_sizes(3, 2).goal is None
    assert Spec.of_sizes(3, 2).inputs()[2].shape == (1, 0)
    assert Spec.of_sizes(3, 2).chunk(5).action == vector(10)
    assert Spec.of_sizes(3, 2).chunk(5).action_dim == 10


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)], ids=str)
def test_noise_has_the_shape_of_an_action_for_each_observation(shape: tuple[int, ...]) -> None:
    for observation in ((3,), (8, 8, 3)):
        spec = Spec(vector(*observation), vector(2))
        np.testing.assert_array_equal(
            spec.noise(KEY, jnp.zeros((*shape, *observation))), jax.random.normal(KEY, (*shape, 2))
        )


@pytest.mark.slow
def test_networks_are_called_by_name_with_any_parameters() -> None:
    s, a, _, _ = Spec.of_sizes(3, 2).inputs()
    nets = named(first=(MLP((4,), 2), s), second=(MLP((4,), 1), s, a))
    assert [(net.name, net.inputs) for net in nets.values()] == [("first", (s,)), ("second", (s, a))]
    params = {name: net.init(KEY) for name, net in nets.items()}
    x, y = normal(1, 5, 3), normal(2, 5, 2)
    np.testing.assert_array_equal(nets["second"](params, x, y), MLP((4,), 1).apply(params["second"], x, y))
    slow = jax.tree.map(lambda p: 2 * p, params)
    assert not np.allclose(nets["first"](slow, x), nets["first"](params, x))
    # The same as with arrays, though none is made.
    jax.tree.map(np.testing.assert_array_equal, params["second"], MLP((4,), 1).init(KEY, x, y))
    assert hash(nets["first"]) == hash(Network("first", MLP((4,), 2), (s,)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5)])
def test_orthogonal_kernels_are_flaxs_and_factorised_one_by_one(shape: tuple[int, int]) -> None:
    """Side by side, LAPACK's threads may wait for each other for ever."""
    keys = jax.random.split(jax.random.key(0), 3)
    mapped, theirs = (jax.vmap(lambda key, one=one: one(key, shape)) for one in (orthogonal(0.7), flaxs(0.7)))
    np.testing.assert_array_equal(mapped(keys), theirs(keys))
    for function, axes in ((mapped, 2), (theirs, 3)):
        (dims,) = re.findall(r"f32\[([\d,]+)\] = qr\[", str(jax.make_jaxpr(function)(keys)))
        assert len(dims.split(",")) == axes


FAULTS = {
    "flowrl/networks.py": [
        (
            'jax.custom_batching.sequential_vmap(partial(jnp.linalg.qr, mode="reduced"))',
            'partial(jnp.linalg.qr, mode="reduced")',
            "test_orthogonal_kernels_are_flaxs_and_factorised_one_by_one",
        ),
        (
            "q = q * jnp.sign(jnp.diag(r))",
            "pass",
            "test_orthogonal_kernels_are_flaxs_and_factorised_one_by_one",
        ),
        (
            "n / (n + 2.0)",
            "n / (n + 1.0)",
            (
                "test_mish_at_its_extremes or test_mish_beyond_20_loses_no_gradient or "
                "test_mish_equals_jax_nn_mish_in_values_and_gradients"
            ),
        ),
        (
            "jnp.minimum(x, 20.0)",
            "jnp.minimum(x, 2.0)",
            (
                "test_mish_at_its_extremes or test_mish_beyond_20_loses_no_gradient or "
                "test_mish_equals_jax_nn_mish_in_values_and_gradients"
            ),
        ),
        (
            "sum(sizes[:i])",
            "sum(sizes[i:])",
            "test_split_dense_equals_a_dense_layer_on_the_concatenation or test_split_dense_starts_as_a_dense_layer",
        ),
        (
            'split_rngs={"params": True}',
            'split_rngs={"params": False}',
            "test_ensemble_members_differ_and_are_each_a_network",
        ),
        ("-2.0, 2.0, shape", "-3.0, 3.0, shape", "test_truncated_kernels_are_narrower_than_their_fan_in_says"),
        ("self.final_init or glorot", "glorot", "test_kernels_have_the_initialisation_that_is_asked_for"),
    ],
    "flowrl/policies.py": [
        (
            "side_by_side((self.action_dim,) * 2, ",
            "side_by_side((2 * self.action_dim,), ",
            "test_the_heads_of_a_squashed_gaussian_start_as_layers_of_their_own",
        ),
    ],
}
