"""Cached features equal computed features, and are used only for frozen parts."""

from __future__ import annotations

import pytest
import torch
from small_models import clip, encoder, model, walk

from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.cores.feature_cache import FeatureCache
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU

DEEP = {"spatial_depth": 2, "temporal_depth": 2}
WHOLE = 1.0  # gigabytes that hold everything here


class Counted:
    """Count the calls of a module, and its clips."""

    def __init__(self, module):
        self.clips, self.calls = 0, 0
        module.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.clips, self.calls = self.clips + len(args[0]), self.calls + 1


def seeded_encoder(**settings):
    torch.manual_seed(0)
    return encoder(**DEEP | settings)


def made(cached=True, gigabytes=WHOLE, layers=None, core=None, **parts):
    """Return a model with a frozen encoder in training mode, as set up by the objective."""
    core = core or seeded_encoder()
    torch.manual_seed(1)
    modulator = ConvGRU(24, 2, 4, hidden=5)
    whole = model(core, layers=layers, modulator=modulator, **parts).train()
    whole.encoder.requires_grad_(False).eval()
    if cached:
        whole.cache = FeatureCache(gigabytes)
    return whole


def frozen_altogether(whole):
    for name, part in whole.named_children():
        if name != "session_readouts":
            part.requires_grad_(False).eval()
    return whole


def batches():
    """Return two epochs in which windows repeat in other batches, with some new windows."""
    videos, behaviours = clip(batch=7, frames=11), walk(batch=7, frames=11)
    for rows in ([0, 1, 2], [3, 4], [2, 0, 5], [4, 4, 1], [3, 6]):
        yield videos[rows], behaviours[rows]


def outcomes(whole):
    """Return rates and gradients of each batch."""
    found = []
    for video, behaviour in batches():
        whole.zero_grad()
        rates = whole(video, behaviour)
        rates.square().sum().backward()
        grads = {n: p.grad.clone() for n, p in whole.named_parameters() if p.grad is not None}
        found.append({"rates": rates.detach(), **grads})
    return found


@pytest.mark.parametrize("layers", [None, 1, [0, 2], "all"])
@pytest.mark.parametrize(
    "settings", [{}, {"final_norm": "none"}, {"temporal_positions": "learned", "num_frames": 4}]
)
def test_features_and_gradients_equal_those_without_a_cache(layers, settings):
    expected, found = (
        outcomes(made(cached, layers=layers, core=seeded_encoder(**settings)))
        for cached in (False, True)
    )
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert ("block_reader.logits" in one) == (layers in ([0, 2], "all"))
        assert not any(name.startswith("encoder.") for name in one)
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-11)
            assert value.any()


def test_each_window_is_encoded_once_and_missing_ones_together():
    whole = made()
    counted = Counted(whole.encoder)
    outcomes(whole)
    assert (counted.clips, counted.calls) == (7, 4)
    with torch.no_grad():
        whole.eval()(clip(batch=7, frames=11)[2:4], walk(batch=2, frames=11))
        assert counted.clips == 7
        whole(clip(frames=8), walk(frames=8))
    assert (counted.clips, len(whole.cache)) == (8, 8)


def test_one_movie_of_several_trials_is_encoded_once():
    plain, whole = made(cached=False), made()
    counted = Counted(whole.encoder)
    video, behaviour = clip(batch=2, frames=9), walk(batch=3, frames=9)
    for clips in ([0, 1, 0], [1, 1, 1]):
        expected = plain.core(video, behaviour, clips=clips)
        torch.testing.assert_close(
            whole.core(video, behaviour, clips=clips), expected, rtol=0, atol=1e-12
        )
    assert counted.clips == 2


@pytest.mark.parametrize("layers", [None, "all"])
def test_a_core_that_is_frozen_altogether_is_cached_as_a_whole(layers):
    plain, whole = (
        frozen_altogether(made(cached, layers=layers, adapter=StimulusAdapter("scale")))
        for cached in (False, True)
    )
    counted = [Counted(part) for part in (whole.encoder.tubelets, whole.adapter, whole.modulator)]
    for one, other in zip(outcomes(plain), outcomes(whole), strict=True):
        assert one.keys() == other.keys() == {"rates", "session_readouts.0.weight"}
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-11)
    assert [each.clips for each in counted] == [7, 7, 7]
    # Another behaviour beside a known movie is another map.
    video, behaviour = clip(batch=2, frames=11), walk(batch=2, frames=11)
    maps = whole.core(video[[0, 0]], behaviour)
    assert not torch.equal(maps[0], maps[1])
    expected = plain.core(video, behaviour, clips=[1, 0])
    found = whole.core(video, behaviour, clips=[1, 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_sessions_of_other_frame_rates_do_not_share_maps():
    rates = {"a": FrameRates(30.0, 15.0), "b": None}
    readouts = {name: torch.nn.Identity() for name in rates}
    plain, whole = (
        frozen_altogether(made(cached, readouts=readouts, frame_rates=rates))
        for cached in (False, True)
    )
    video, behaviour = clip(frames=16), walk(frames=16)
    for session in ("a", "b", "a"):
        expected = plain.core(video, behaviour, session)
        found = whole.core(video, behaviour, session)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert len(whole.cache) == 2


def test_other_cores_are_cached():
    core = CausalResNet(CausalResNetConfig(widths=(4,), depths=(1,), strides=(1,)))
    core = core.double().requires_grad_(False).eval()
    whole = NeuralModel(core, modulator=None, readouts={"a": torch.nn.Identity()})
    whole.cache, video = FeatureCache(WHOLE), clip(batch=2, frames=6)
    counted = Counted(core.stem)
    expected = core.dense(video)
    for _ in range(2):
        torch.testing.assert_close(whole.core(video), expected, rtol=0, atol=1e-12)
    assert (len(whole.cache), counted.clips) == (2, 4)


def test_the_bound_is_kept_and_what_does_not_fit_is_computed():
    row = 24 * 2 * 6 * 8  # bytes of the tokens of a window
    whole = made(gigabytes=3.5 * row / 1e9)
    counted = Counted(whole.encoder)
    for one, other in zip(outcomes(made(cached=False)), outcomes(whole), strict=True):
        torch.testing.assert_close(other["rates"], one["rates"], rtol=0, atol=1e-11)
    assert (len(whole.cache), whole.cache.size) == (3, 3 * row)
    stored = sum(each.untyped_storage().nbytes() for each in whole.cache._kept.values())
    assert stored == 3 * row
    # 0 1 2 | 3 4 | 5 | 4 | 3 6: two that were met before are computed again.
    assert counted.clips == 9


@pytest.mark.parametrize("case", ["full", "dropout", "adapter", "training"])
def test_what_is_not_fixed_is_computed(case):
    core = seeded_encoder(patch_dropout=0.5 if case == "dropout" else 0.0)
    whole = made(core=core, adapter=StimulusAdapter("scale") if case == "adapter" else None)
    if case == "full":
        whole.encoder.requires_grad_(True)
    elif case in ("dropout", "training"):
        whole.encoder.train()
    counted = Counted(whole.encoder)
    found = outcomes(whole)
    assert (len(whole.cache), counted.clips) == (0, 13)
    if case == "adapter":
        assert found[0]["adapter.log_scale"] != 0


def test_other_weights_empty_the_cache():
    plain, whole = made(cached=False), made()
    video, behaviour = clip(batch=2, frames=8), walk(batch=2, frames=8)
    whole.core(video, behaviour)
    for change in (
        lambda net: net.load_state_dict({n: p * 1.5 for n, p in net.state_dict().items()}),
        lambda net: net.encoder.trunk.temporal_norm.bias.add_(1.0),
    ):
        for each in (plain, whole):
            with torch.no_grad():
                change(each)
        found = whole.core(video, behaviour)
        torch.testing.assert_close(found, plain.core(video, behaviour), rtol=0, atol=1e-12)
        assert len(whole.cache) == 2


def test_autocast_has_features_of_its_own():
    whole, plain = made().float(), made(cached=False).float()
    video, behaviour = clip(batch=2, frames=8).float(), walk(batch=2, frames=8).float()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(whole.core(video, behaviour), plain.core(video, behaviour))
        assert torch.equal(whole.core(video, behaviour), plain.core(video, behaviour))
    assert len(whole.cache) == 4


def test_the_cache_is_not_part_of_the_state():
    whole = made()
    outcomes(whole)
    assert whole.state_dict().keys() == made(cached=False).state_dict().keys()


def test_features_keep_their_order_in_memory():
    fixed, video = torch.nn.Linear(1, 1).requires_grad_(False).eval(), clip(batch=2, frames=8)
    cache = FeatureCache(WHOLE)
    for _ in range(2):
        found = cache.features([fixed], lambda x: x.movedim(1, -1) * 2, video)
        expected = video.movedim(1, -1) * 2
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
