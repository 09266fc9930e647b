"""Planners against references in numpy: denoising with the same draws, and the networks over time."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import config_of
from stub_agents import network

from flowrl.agents import decision_diffuser, diffuser
from flowrl.config import as_arrays
from flowrl.encoders import sinusoidal_features
from flowrl.networks import Spec
from flowrl.temporal import HEAD_DIM, HEADS, ConvBlock, LinearAttention, PlanValue, TemporalUNet
from flowrl.train_state import Policy

D, A, H, B = 3, 2, 5, 4
SPEC = Spec.of_sizes(D, A, D)
KEY = jax.random.key(3)

# ----------------------------------------------------------------------------------------------------- denoising

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(H * (A + D), H * (A + D))) * 0.2
CURVED = RNG.normal(size=(H * (A + D), H * (A + D))) * 0.1
CURVED = CURVED + CURVED.T
SLOPE = RNG.normal(size=H * (A + D))
STATES, GOALS = RNG.normal(size=(2, B, D)).astype(np.float32)


def flat(x: Any) -> Any:
    return x.reshape(*x.shape[:-2], -1)


def predicted(params: Any, x: Any, level: Any) -> Any:
    """What a nonlinear model says, which mixes all of a plan and knows the level."""
    mix = MIX[: x.shape[-1] * H, : x.shape[-1] * H].astype(np.float32)
    return 0.8 * jnp.tanh((flat(x) @ mix).reshape(x.shape)) + 0.02 * level[..., None]


def value(params: Any, x: Any, level: Any) -> Any:
    """A return that is curved, the more so the higher the level, and sloped, the less so."""
    x, level = flat(x), level[..., 0]
    curved = ((x @ CURVED.astype(np.float32)) * x).sum(-1) / 2
    return curved * (1 + 0.1 * level) + x @ SLOPE.astype(np.float32) * (1 - 0.05 * level)


def value_slope(x: np.ndarray, level: int) -> np.ndarray:
    """Its gradient, by hand."""
    return (flat(x) @ CURVED * (1 + 0.1 * level) + SLOPE * (1 - 0.05 * level)).reshape(x.shape)


def given(x: np.ndarray, goals: bool) -> np.ndarray:
    x = x.copy()
    x[..., 0, -D:] = STATES
    if goals:
        x[..., -1, -D:] = GOALS
    return x


def denoised(
    levels: int, start: np.ndarray, draws: np.ndarray, model: Any, *, goals: bool = False, guide: tuple[Any, ...] = (),
    bound: float = np.inf, temperature: float = 1.0, noise: bool = False,
) -> np.ndarray:  # fmt: skip
    """DDPM (algorithm 2 there) with what is given set after every change of the plans, as in Diffuser's code.

    Args:
        levels: T, on the squared cosine.
        start: Plans of noise.
        draws: The noise of each step `[T, ...]`.
        model: What is predicted.
        goals: Whether goals are given.
        guide: Scale, steps, and the level from which on there are none.
        bound: Of the data that are seen.
        temperature: Factor of all noise.
        noise: Whether noise is predicted, not the data.
    """
    angles = (np.linspace(0, 1, levels + 1) + 0.008) / 1.008 * np.pi / 2
    beta = np.minimum(1 - np.cos(angles[1:]) ** 2 / np.cos(angles[:-1]) ** 2, 0.999)
    left = np.cumprod(1 - beta)
    x = given(temperature * start, goals)
    for draw, t in zip(draws, reversed(range(levels)), strict=True):
        before = left[t - 1] if t else 1.0
        variance = beta[t] * (1 - before) / (1 - left[t])
        for _ in range(guide[1] if guide else 0):
            x = given(x + (guide[0] * variance * value_slope(x, t) if t >= guide[2] else 0), goals)
        found = np.asarray(model(x, t))
        seen = (x - np.sqrt(1 - left[t]) * found) / np.sqrt(left[t]) if noise else found
        mean = beta[t] * np.sqrt(before) * np.clip(seen, -bound, bound) + (1 - before) * np.sqrt(1 - beta[t]) * x
        x = given(mean / (1 - left[t]) + temperature * np.sqrt(variance) * draw, goals)
    return x


def noises(levels: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    start, steps = jax.random.split(KEY)
    return np.asarray(jax.random.normal(start, shape)), np.asarray(jax.random.normal(steps, (levels, *shape)))


@pytest.mark.parametrize("name", ["diffuser", "diffuser_goal"])
def test_plans_are_denoised_and_guided_as_by_hand(name: str) -> None:
    """Where the return is curved, and another at each level, so that each gradient counts where it is taken."""
    guide = {"guide.scale": 0.7, "guide.stop": 2, "guide.steps": 2} if name == "diffuser" else {}
    told = {"plans.length": H, "plans.played": 1, "candidates": 6, "diffusion.levels": 20, **guide}
    policy = Policy(as_arrays(config_of(name, told)), {"plan": None, "value": None})
    nets, goals = diffuser.Networks(SPEC, network("plan", predicted), network("value", value)), name != "diffuser"
    inputs = {"observations": jnp.asarray(STATES), "goals": jnp.asarray(GOALS)}
    plans = jax.jit(functools.partial(diffuser.plan, nets))(policy, STATES, GOALS if goals else None, KEY)
    start, draws = noises(20, 6, B, H, A + D)
    expected = denoised(
        20, start, draws, lambda x, t: predicted(None, x, jnp.full((1, 1, 1), t)[..., 0]), goals=goals,
        guide=() if goals else (0.7, 2, 2),
    )  # fmt: skip
    np.testing.assert_allclose(plans, expected, atol=2e-5)
    actions = jax.jit(functools.partial(diffuser.act, nets))(policy, inputs, KEY)
    best = np.zeros(B, int) if goals else np.asarray(value(None, expected, np.zeros((1, 1)))).argmax(axis=0)
    np.testing.assert_allclose(actions, np.clip(expected[best, np.arange(B), 0, :A], -1, 1), atol=2e-5)
    assert goals or len(set(best)) > 1


def test_decision_diffusers_plans_are_denoised_as_by_hand() -> None:
    """With half the noise at the start and in each step; ε̂ = ε + 0.5 · 1.2 · 0.9 where the return adds half of it."""
    nets = decision_diffuser.Networks(
        SPEC,
        network("plan", lambda p, x, level, r, told: predicted(p, x, level / 10) + 0.5 * (told * r)[..., None]),
        network("inverse", lambda params, s, later: (later - s)[..., :A]),
    )
    policy = Policy(as_arrays(config_of("decision_diffuser", {"plans.length": H})), {"plan": None, "inverse": None})
    plans = jax.jit(functools.partial(decision_diffuser.plan, nets))(policy, STATES, KEY)
    start, draws = noises(200, 1, B, H, D)
    expected = denoised(
        200, start, draws, lambda x, t: predicted(None, x, np.full((1, 1), t / 10)) + 0.5 * 1.2 * 0.9,
        bound=5.0, temperature=0.5, noise=True,
    )  # fmt: skip
    np.testing.assert_allclose(plans, expected[0], atol=1e-4)


# ------------------------------------------------------------------------------------------------------ networks


def stirred(net: nn.Module, *inputs: Any) -> tuple[Any, Any]:
    """A network's parameters, none of them 0 or 1, and what it says."""
    params = jax.jit(net.init)(KEY, *inputs)
    params = jax.tree.map(lambda w: w + 0.3 * jax.random.normal(jax.random.fold_in(KEY, w.size), w.shape), params)
    return jax.tree.map(np.asarray, params["params"]), jax.jit(net.apply)(params, *inputs)


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def affine(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def convolution(p: Any, x: np.ndarray, width: int, stride: int = 1) -> np.ndarray:
    """Sums over `width` steps side by side, zeros beyond the ends: `[B, H, W]`."""
    kernel, padded = p["kernel"].reshape(width, x.shape[-1], -1), np.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    starts = range(0, x.shape[1], stride)
    return np.stack([sum(padded[:, i + j] @ kernel[j] for j in range(width)) for i in starts], axis=1) + p["bias"]


def conv_block(p: Any, x: np.ndarray) -> np.ndarray:
    x = convolution(p["Dense_0"], x, 5)
    groups = x.reshape(*x.shape[:2], 8, -1)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    normal = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return mish(normal * p["GroupNorm_0"]["scale"] + p["GroupNorm_0"]["bias"])


def residual_block(p: Any, x: np.ndarray, condition: np.ndarray) -> np.ndarray:
    inner = conv_block(p["ConvBlock_0"], x) + affine(p["Dense_0"], mish(condition))[:, None]
    return conv_block(p["ConvBlock_1"], inner) + (affine(p["Dense_1"], x) if "Dense_1" in p else x)


def transposed(here_before: Any, here_after: Any, x: np.ndarray) -> np.ndarray:
    """PyTorch's ConvTranspose1d(W, W, 4, stride 2, padding 1): step i writes to 2 i − 1 … 2 i + 2."""
    width, found = x.shape[-1], np.zeros((len(x), 2 * x.shape[1], x.shape[-1]))
    first, second = here_before["kernel"], here_after["kernel"]
    kernels = (second[width:], first[:width], second[:width], first[width:])
    for i in range(x.shape[1]):
        for k, kernel in enumerate(kernels):
            if 0 <= (at := 2 * i - 1 + k) < found.shape[1]:
                found[:, at] += x[:, i] @ kernel
    found[:, ::2] += here_before["bias"]
    found[:, 1::2] += here_after["bias"]
    return found


def embedding(p: Any, level: np.ndarray, size: int) -> np.ndarray:
    return affine(p["Dense_1"], mish(affine(p["Dense_0"], np.asarray(sinusoidal_features(jnp.asarray(level), size)))))


PLANS, LEVELS = np.asarray(jax.random.normal(KEY, (3, 8, 5))), np.array([[0.0], [3.0], [11.0]])


def test_a_block_by_hand() -> None:
    p, found = stirred(ConvBlock(24), PLANS)
    np.testing.assert_allclose(found, conv_block(p, PLANS), atol=1e-4)


def test_linear_attention_by_hand() -> None:
    """Keys are a softmax over steps, queries over √32; their contexts are added to what came in."""
    x = np.asarray(jax.random.normal(KEY, (3, 7, 16)))
    p, found = stirred(LinearAttention(), x)
    norm = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    qkv = affine(p["Dense_0"], norm * p["LayerNorm_0"]["scale"] + p["LayerNorm_0"]["bias"])
    q, k, v = np.moveaxis(qkv.reshape(3, 7, 3, HEADS, HEAD_DIM), 2, 0)
    k = np.exp(k) / np.exp(k).sum(axis=1, keepdims=True)
    context = np.einsum("bnhd,bnhe->bhde", k, v)
    seen = np.einsum("bhde,bnhd->bnhe", context, q / np.sqrt(HEAD_DIM)).reshape(3, 7, -1)
    np.testing.assert_allclose(found, x + affine(p["Dense_1"], seen), atol=1e-3)


@pytest.mark.slow
def test_the_u_net_by_hand() -> None:
    """Three resolutions, the finest skip without use, as in the authors' code."""
    p, found = stirred(TemporalUNet((16, 24, 32)), PLANS, LEVELS)
    condition = embedding(p, LEVELS, 16)

    def blocks(i: int, x: np.ndarray) -> np.ndarray:
        first, second = (p[f"ResidualBlock_{j}"] for j in (i + 1, i))  # named as they are written, the outer one first
        return residual_block(second, residual_block(first, x, condition), condition)

    fine = blocks(0, PLANS)
    middle = blocks(2, convolution(p["Dense_2"], fine, 3, stride=2))
    coarse = blocks(4, convolution(p["Dense_3"], middle, 3, stride=2))
    x = coarse
    for i in (6, 7):
        x = residual_block(p[f"ResidualBlock_{i}"], x, condition)
    x = transposed(p["Dense_4"], p["Dense_5"], blocks(8, np.concatenate([x, coarse], axis=-1)))
    x = transposed(p["Dense_6"], p["Dense_7"], blocks(10, np.concatenate([x, middle], axis=-1)))
    np.testing.assert_allclose(found, affine(p["Dense_8"], conv_block(p["ConvBlock_0"], x)), rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_the_return_of_a_plan_by_hand() -> None:
    p, found = stirred(PlanValue((16, 32)), PLANS, LEVELS)
    x, condition = PLANS, embedding(p, LEVELS, 16)
    for level, i in enumerate((0, 2)):
        first, second = (p[f"ResidualBlock_{j}"] for j in (i + 1, i))
        x = residual_block(second, residual_block(first, x, condition), condition)
        x = convolution(p[f"Dense_{2 + level}"], x, 3, stride=2)
    for level, i in enumerate((4, 5)):
        x = residual_block(p[f"ResidualBlock_{i}"], x, condition)
        x = convolution(p[f"Dense_{4 + level}"], x, 3, stride=2)
    both = np.concatenate([x.reshape(3, -1), condition], axis=-1)
    np.testing.assert_allclose(
        found, affine(p["Dense_7"], mish(affine(p["Dense_6"], both)))[:, 0], rtol=1e-3, atol=1e-3
    )


def test_layers_begin_as_in_pytorch() -> None:
    """Kernels and biases uniform within 1/√fan-in, that of a transposed convolution being its four outputs."""
    p = jax.jit(TemporalUNet((16, 24)).init)(KEY, PLANS, LEVELS)["params"]
    for name, fan_in in (("Dense_0", 16), ("Dense_2", 3 * 16), ("Dense_3", 4 * 16), ("Dense_4", 4 * 16)):
        assert 0.9 < np.abs(p[name]["kernel"]).max() * np.sqrt(fan_in) <= 1.0
        assert 0.6 < np.abs(p[name]["bias"]).max() * np.sqrt(fan_in) <= 1.0


FAULTS = {
    "agents/diffuser.py": [
        ("jnp.full((1, 1), level)", "jnp.zeros((1, 1))", "test_plans_are_denoised_and_guided_as_by_hand and not goal"),
        (
            "plans, jnp.zeros((1, 1)))",
            "plans, jnp.full((1, 1), 70.0))",
            "test_plans_are_denoised_and_guided_as_by_hand",
        ),
        (".sum())(x)", ".sum())(z)", "test_plans_are_denoised_and_guided_as_by_hand and not goal"),
    ],
    "agents/decision_diffuser.py": [
        (
            "config.diffusion.temperature * noise",
            "noise",
            "test_decision_diffusers_plans_are_denoised_as_by_hand",
        ),
    ],
    "flowrl/diffusion.py": [
        ("temperature * std * draw", "std * draw", "test_decision_diffusers_plans_are_denoised_as_by_hand"),
    ],
    "flowrl/temporal.py": [
        ("axis=-3)", "axis=-1)", "test_linear_attention_by_hand"),
        ("q / HEAD_DIM**0.5", "q", "test_linear_attention_by_hand"),
        ("skips.pop()", "0 * skips.pop()", "test_the_u_net_by_hand"),
        ("(before, after)]", "(after, before)]", "test_the_u_net_by_hand"),
        ("width, 4 * width)", "width)", "test_layers_begin_as_in_pytorch"),
        ("mish(condition), self.width", "condition, self.width", "test_the_return_of_a_plan_by_hand"),
    ],
}
