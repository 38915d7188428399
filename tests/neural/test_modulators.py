"""ConvGRU and FiLM, compared with step-by-step references; alignment of behaviour in time."""

import json

import pytest
import torch
import torch.nn.functional as F
from small_models import walk
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.model_settings import build_part
from ssl_vivit.neural.modulators import (
    ConvGRU,
    FiLM,
    ModulatorConfig,
    build_modulator,
)

KINDS = ("convgru", "film")
by_kind = pytest.mark.parametrize("kind", KINDS)
by_behaviour = pytest.mark.parametrize("channels", [2, 42])


def make(kind, channels=2, stride=4, randomised=True, **settings):
    torch.manual_seed(0)
    modulator = build_modulator(ModulatorConfig(kind=kind, **settings), 6, channels, stride)
    if randomised:
        with torch.no_grad():
            for parameter in modulator.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return modulator.double()


def tokens(steps=5, batch=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 6, steps, 3, 4, generator=generator, dtype=torch.float64)


@torch.no_grad()
@by_behaviour
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("gain", [False, True])
def test_convgru_is_its_equations_step_by_step(channels, kernel, gain):
    modulator = make("convgru", channels, hidden=5, kernel=kernel, embedding=7, gain=gain)
    map, behaviour = tokens(), walk(2, 20, channels)
    weights, bias = modulator.input.weight, modulator.input.bias
    linear = modulator.behaviour.linear
    state, out = torch.zeros(2, 5, 3, 4, dtype=torch.float64), []
    for i in range(5):
        frames = torch.stack([behaviour[:, 4 * i + j] for j in range(4)], 1).flatten(1)
        embedded = F.gelu(frames @ linear.weight.T + linear.bias)
        gates = []
        for part in range(3):
            rows = slice(5 * part, 5 * part + 5)
            x = F.conv2d(map[:, :, i], weights[rows], bias[rows], padding=kernel // 2)
            b = embedded @ modulator.of_behaviour.weight[rows].T
            u = F.conv2d(
                state, modulator.recurrent.weight[rows], modulator.recurrent.bias[rows],
                padding=kernel // 2,
            )  # fmt: skip
            gates.append((x + b[:, :, None, None], u))
        reset, update = (torch.sigmoid(x + u) for x, u in gates[:2])
        new = torch.tanh(gates[2][0] + reset * gates[2][1])
        state = (1 - update) * new + update * state
        change = modulator.project(state)
        scaled = map[:, :, i]
        if gain:
            scaled, change = scaled * (1 + change[:, :6]), change[:, 6:]
        out.append(scaled + change)
    found, last = modulator(map, behaviour)
    torch.testing.assert_close(found, torch.stack(out, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=0, atol=1e-12)


@torch.no_grad()
@by_behaviour
def test_film_is_its_equation_step_by_step(channels):
    modulator, map, behaviour = make("film", channels), tokens(), walk(2, 20, channels)
    found, _ = modulator(map, behaviour)
    for i in range(5):
        embedded = F.gelu(modulator.behaviour.linear(behaviour[:, 4 * i : 4 * i + 4].flatten(1)))
        gain, offset = modulator.project(embedded)[:, :, None, None].chunk(2, 1)
        expected = map[:, :, i] * (1 + gain) + offset
        torch.testing.assert_close(found[:, :, i], expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_long_clip_stays_within_one_percent(half):
    modulator, map, behaviour = make("convgru", hidden=12), tokens(75), walk(2, 300)
    expected, exact = modulator(map, behaviour)
    modulator, map, behaviour = modulator.float(), map.float(), behaviour.float()
    with torch.autocast("cpu", half):
        found, state = modulator(map, behaviour)
    assert state.dtype == torch.float32
    assert (state - exact).norm() < 0.01 * exact.norm()
    assert (found - expected).norm() < 0.01 * (expected - map).norm()
    # A stream hands the state from call to call.
    with torch.autocast("cpu", half):
        _, early = modulator(map[:, :, :30], behaviour[:, :120])
        _, late = modulator(map[:, :, 30:], behaviour[:, 120:], early)
    torch.testing.assert_close(late, state, rtol=0.02, atol=0.02)


class Launches(TorchDispatchMode):
    """Record the operators that would launch a kernel: all except views and queries of types."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view and operator.overloadpacket is not torch.ops.aten.promote_types:
            self.names.append(operator.overloadpacket.__name__)
        return operator(*args, **kwargs or {})


@torch.no_grad()
@pytest.mark.parametrize(("autocast", "most"), [(False, 6), (True, 7)])
def test_a_step_of_the_convgru_launches_few_kernels(autocast, most):
    modulator, counts = make("convgru").float(), []
    for steps in (5, 15):
        map, behaviour = tokens(steps).float(), walk(2, 4 * steps).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Launches() as launches:
            modulator(map, behaviour)
        counts.append(len(launches.names))
    assert counts[1] - counts[0] == 10 * most


def test_a_compiled_convgru_compiles_only_its_step():
    plain, map, behaviour = make("convgru"), tokens(12), walk(2, 48)
    compiled, counter = make("convgru"), CompileCounter()
    compiled.compile(backend=counter)
    for modulator in (plain, compiled):
        modulator(map, behaviour)[0].square().sum().backward()
    torch.testing.assert_close(compiled(map, behaviour), plain(map, behaviour), rtol=0, atol=1e-12)
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)
    # The first state needs no gradient, those after it do.
    assert counter.frame_count <= 2
    assert counter.op_count < 30


@torch.no_grad()
@by_kind
def test_token_by_token_with_the_state_is_the_whole_clip(kind):
    modulator, map, behaviour = make(kind), tokens(), walk(2, 20)
    state, steps = None, []
    for i in range(5):
        step, state = modulator(map[:, :, i : i + 1], behaviour[:, 4 * i : 4 * i + 4], state)
        steps.append(step)
    expected = modulator(map, behaviour)[0]
    torch.testing.assert_close(torch.cat(steps, 2), expected, rtol=0, atol=1e-12)


@by_kind
def test_a_fresh_modulator_is_the_identity_and_learns(kind):
    modulator, map = make(kind, randomised=False), tokens()
    found, _ = modulator(map, walk(2, 20))
    assert torch.equal(found, map)
    found.square().sum().backward()
    assert modulator.project.weight.grad.abs().max() > 0.1


@torch.no_grad()
@by_kind
def test_the_order_of_behaviour_within_a_token_counts(kind):
    """A mean over the frames of a token would not depend on the order."""
    modulator, map, behaviour = make(kind), tokens(), walk(2, 20)
    other = behaviour.clone()
    other[:, [8, 9]] = behaviour[:, [9, 8]]
    change = (modulator(map, behaviour)[0] - modulator(map, other)[0]).abs().amax((0, 1, 3, 4))
    assert change[2] > 1e-4
    assert change[:2].max() == 0


@torch.no_grad()
@by_kind
def test_no_behaviour_is_behaviour_of_zeros_and_a_rest_of_frames_is_left_out(kind):
    modulator, map, behaviour = make(kind), tokens(), walk(2, 23)
    assert torch.equal(modulator(map)[0], modulator(map, torch.zeros_like(behaviour))[0])
    assert torch.equal(modulator(map, behaviour)[0], modulator(map, behaviour[:, :20])[0])


def test_convgru_works_without_behaviour_and_film_refuses():
    modulator = build_modulator(ModulatorConfig(), 6, 0, 4)
    assert modulator(tokens().float())[0].shape == (2, 6, 5, 3, 4)
    with pytest.raises(NeuralModelError, match=r"modulator\.kind 'film' needs behaviour"):
        build_modulator(ModulatorConfig(kind="film"), 6, 0, 4)


@torch.no_grad()
@by_kind
def test_a_modulator_is_rebuilt_from_its_config(kind):
    modulator = make(kind, 42, embedding=9)
    config = json.loads(json.dumps(modulator.to_config()))
    other = build_part("modulator", config).double()
    other.load_state_dict(modulator.state_dict())
    map, behaviour = tokens(), walk(2, 20, 42)
    assert torch.equal(other(map, behaviour)[0], modulator(map, behaviour)[0])


def test_configs_select_the_modulator_and_mistakes_are_refused():
    assert build_modulator(ModulatorConfig("none"), 6, 2, 4) is None
    assert isinstance(build_modulator(ModulatorConfig("film"), 6, 2, 4), FiLM)
    assert isinstance(build_modulator(ModulatorConfig(), 6, 2, 4), ConvGRU)
    for wrong in ({"kind": "lstm"}, {"kernel": 2}, {"hidden": 0}, {"embedding": 0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"modulator.{name}"):
            ModulatorConfig(**wrong)


def test_gradients_of_the_convgru_are_exact():
    modulator = make("convgru", stride=2, hidden=2, kernel=3, embedding=3)
    map = tokens(3, 1)[:, :, :, :2, :2].requires_grad_()
    behaviour = walk(1, 6).requires_grad_()
    torch.autograd.gradcheck(lambda m, b: modulator(m, b)[0], (map, behaviour))
