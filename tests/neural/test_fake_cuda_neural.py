"""Models of neurons on fake CUDA tensors: all tensors on one device, no operation makes the host wait."""

import pytest
import torch
from fake_cuda import FakeDevice
from small_models import VARIANTS, encoder

from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.cores.causal_x3d import CausalX3D, CausalX3DConfig
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.motion_energy import MotionEnergy
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.readout.gaussian import GaussianReadout


def waits_of(model, device, frames=9, behaviour=2, size=(8, 12)):
    """Return the operations of a forward pass, and on ``meta`` of a backward pass, that the host would wait for."""
    place = FakeDevice(device)
    place.fake(model.train())
    video = place.fake(torch.empty(2, 1, frames, *size))
    signals, pupil = (place.fake(torch.empty(2, frames, n)) for n in (behaviour, 2))
    with place.watched() as waits:
        rates = model(video, signals if behaviour else None, pupil_centre=pupil)
        assert rates.shape == (2, frames, 5)
        assert rates.device.type == device
        if device == "meta":
            rates.sum().backward()
    return waits.found


def gaussian(channels=24, **settings):
    return {"a": GaussianReadout(5, channels, **settings)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoders_modulators_and_readouts(variant):
    modulator = ConvGRU(24, 2, 4, hidden=5, gain=True)
    parts = {"modulator": modulator, "readouts": gaussian(shifter=True)}
    assert waits_of(NeuralModel(encoder(variant), **parts), "cuda") == []


@pytest.mark.parametrize("sampling", ["point", "mask"])
@pytest.mark.parametrize("settings", [{}, {"shifter": True}, {"coordinates": torch.rand(5, 3)}])
def test_readouts(sampling, settings):
    for device in ("cuda", "meta"):
        modulator = FiLM(24, 2, 4) if device == "cuda" else None
        readouts = gaussian(sampling=sampling, **settings)
        model = NeuralModel(encoder(), StimulusAdapter("affine"), modulator, readouts)
        assert waits_of(model, device) == []


def test_a_backward_pass_of_all_parts_and_another_frame_rate():
    modulator, readouts = ConvGRU(24, 2, 4, hidden=5), gaussian(shifter=True)
    model = NeuralModel(
        encoder(), StimulusAdapter(), modulator, readouts, frame_rates={"a": FrameRates(30, 24)}
    )
    assert waits_of(model, "meta") == []


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_baselines(device):
    resnet, x3d = CausalResNet(CausalResNetConfig()), CausalX3D(CausalX3DConfig())
    energy = MotionEnergy(frames_per_second=30)
    for core in (resnet, x3d, energy):
        model = NeuralModel(core, readouts=gaussian(core.channels))
        assert waits_of(model, device, 4, 0, (36, 64)) == [], type(core).__name__
