"""GaussianReadout, compared with neuralpredictors, grid_sample and slow loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural import GaussianReadout, ReadoutConfig

PARITY = Path(__file__).parents[1] / "parity" / "neuralpredictors_fullgaussian2d.npz"
DOUBLE = torch.float64
CASES = [
    (kind, align, bias)
    for kind in ("full", "isotropic", "uncorrelated")
    for align in (1, 0)
    for bias in (1, 0)
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def numbers(kind, align, bias):
    prefix = f"gauss2d|{kind}|align{align}|bias{bias}|"
    with np.load(PARITY, allow_pickle=False) as file:
        return {
            name.removeprefix(prefix): torch.from_numpy(file[name])
            for name in file.files
            if name.startswith(prefix)
        }


def of_numbers(reference, kind, align, bias):
    readout = GaussianReadout(9, 6, gaussian=kind, align_corners=bool(align), bias=bool(bias))
    spread = reference["sigma"][0].expand(9, -1, 2)
    if kind != "full":
        spread = spread[:, 0].diag_embed()
    state = {
        "mean": reference["mu_before"][0, :, 0],
        "spread": spread,
        "features": reference["features"][0, :, 0].T,
        "_spread_scale": torch.ones(()),
    }
    if bias:
        state["bias"] = reference["bias"]
    readout.load_state_dict(state)
    return readout


def assert_as_good(ours, theirs):
    """Check equality to a millionth of the largest number, since both sides are float32."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize(("kind", "align", "bias"), CASES)
def test_evaluation_and_its_gradients_are_the_references(kind, align, bias):
    reference = numbers(kind, align, bias)
    readout = of_numbers(reference, kind, align, bias).eval()
    torch.testing.assert_close(readout.centres(), reference["mu_after_clamp"][0, :, 0])
    map = reference["input"].requires_grad_()
    drive = readout(map)
    assert_as_good(drive, reference["output"])
    (drive * reference["out_weights"]).sum().backward()
    for ours, theirs in (
        (map.grad, reference["grad_input"]),
        (readout.mean.grad, reference["grad_mu"][0, :, 0]),
        (readout.features.grad, reference["grad_features"][0, :, 0].T),
    ):
        assert_as_good(ours, theirs)


@pytest.mark.parametrize(("kind", "align", "bias"), CASES)
def test_units_shifts_and_draws_are_the_references(kind, align, bias):
    reference = numbers(kind, align, bias)
    readout = of_numbers(reference, kind, align, bias).eval()
    map, centres = reference["input"], readout.centres()
    chosen = readout(map)[..., reference["out_idx"]]
    assert_as_good(chosen, reference["output_out_idx"])
    shifted = readout.read(map, centres + reference["shift"][:, None])
    assert_as_good(shifted, reference["output_shift"])
    drawn = reference["train_grid_seed42"][:, :, 0]
    assert_as_good(readout.read(map, drawn), reference["train_output_seed42"])
    noise = reference["train_noise_seed42"][:, :, 0]
    ours = (centres + (readout.widths() @ noise[..., None])[..., 0]).clamp(-1, 1)
    assert_as_good(ours, drawn)
    total = readout.regularisation()["feature_l1"] * readout.neurons
    torch.testing.assert_close(total, reference["feature_l1_sum"])


def by_grid_sample(readout, map, positions, shift=None):
    """Read every frame separately, as (b t) images; return (b, t, n)."""
    b, t = map.shape[0], map.shape[2]
    images = map.transpose(1, 2).flatten(0, 1)
    places = positions[:, None].expand(-1, t, -1, -1)
    places = places if shift is None else places + shift[:, :, None]
    seen = F.grid_sample(
        images, places.flatten(0, 1)[:, :, None], align_corners=readout.config.align_corners
    )
    drive = (seen[..., 0] * readout.features.T).sum(1) + readout.bias
    return drive.view(b, t, -1)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (1, 4), (4, 1), (1, 1)])
def test_any_position_reads_what_grid_sample_does(size, align, moving):
    readout = GaussianReadout(11, 4, align_corners=align).double()
    map = torch.randn(2, 4, 3, *size, dtype=torch.float64, requires_grad=True)
    # Up to half a map outside, by themselves or with a shift; a fixed few at edges and corners.
    reach = 1 if moving else 1.5
    positions = (torch.rand(2, 11, 2, dtype=torch.float64) * 2 - 1) * reach
    positions[:, :3] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, 0.25]]).double()
    shift = None
    if moving:
        shift = torch.rand(2, 3, 2, dtype=torch.float64) - 0.5
        shift[:, 0] = torch.tensor([1.0, -1.0])
        shift.requires_grad_()
    positions.requires_grad_()
    ours = readout.read(map, positions, shift)
    theirs = by_grid_sample(readout, map, positions, shift)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(ours)
    wanted = (map, positions, readout.features, *([shift] if moving else []))
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("sampling", ["point", "mask"])
@pytest.mark.parametrize("moving", [False, True])
def test_gradients_are_those_of_finite_differences(sampling, moving):
    # Finite differences across the edge of a pixel would be those of no side.
    torch.manual_seed(0)
    readout = GaussianReadout(5, 3, sampling=sampling).double().eval()
    map = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    positions = (torch.rand(2, 5, 2, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    shift = torch.rand(2, 2, 2, dtype=torch.float64) - 0.5 if moving else torch.zeros(2, 2)
    shift = shift.double().requires_grad_()

    def drive(map, positions, shift, features, spread):
        parameters = {"features": features, "spread": spread}
        inputs = (map, positions, shift) if moving else (map, positions + shift[:, None])
        return torch.func.functional_call(Read(readout), prefixed(parameters), inputs)

    # Masks narrower than a quarter of a pixel learn as if they were that wide.
    spread = (1.5 * readout.spread + 0.05 * torch.randn(5, 2, 2)).detach().requires_grad_()
    features = readout.features.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        drive, (map, positions, shift, features, spread), fast_mode=True
    )


class Read(torch.nn.Module):
    def __init__(self, readout):
        super().__init__()
        self.readout = readout

    def forward(self, map, positions, shift=None):
        return self.readout.read(map, positions, shift)


def prefixed(parameters):
    return {f"readout.{name}": value for name, value in parameters.items()}


def slow_mask(position, spread, size, align):
    """Return one neuron's weights from the density of its Gaussian, pixel by pixel."""
    h, w = size
    pitch = [2 / (w - 1), 2 / (h - 1)] if align else [2 / w, 2 / h]
    covariance = spread @ spread.T
    scale = torch.tensor(pitch, dtype=DOUBLE).diag()
    narrowest = torch.linalg.eigvalsh(scale.inverse() @ covariance @ scale.inverse())[0]
    if narrowest < 0.25**2:
        covariance = covariance + (0.25**2 - narrowest) * scale**2
    inverse = torch.linalg.inv(covariance)
    weights = torch.zeros(h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            first = 0.0 if align else 0.5
            place = torch.tensor(
                [(x + first) * pitch[0] - 1, (y + first) * pitch[1] - 1], dtype=DOUBLE
            )
            offset = place - position
            weights[y, x] = math.exp(-0.5 * float(offset @ inverse @ offset))
    return weights / weights.sum()


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("kind", ["full", "uncorrelated", "isotropic"])
def test_masks_are_those_of_a_slow_loop(kind, align):
    readout = GaussianReadout(6, 3, sampling="mask", gaussian=kind, align_corners=align, spread=0.5)
    readout = readout.double().eval()
    readout.spread.data += 0.4 * torch.randn(6, 2, 2)
    readout.mean.data.uniform_(-1, 1)
    readout.spread_scale = 0.8
    map = torch.randn(2, 3, 4, 5, 7, dtype=torch.float64)
    drive = readout(map)
    for n in range(6):
        spread = 0.8 * readout.spread[n].detach()
        if kind != "full":
            spread = spread.diag().diag()
        if kind == "isotropic":
            spread = spread.trace() / 2 * torch.eye(2, dtype=DOUBLE)
        mask = slow_mask(readout.mean[n].detach(), spread, (5, 7), align)
        for b in range(2):
            for t in range(4):
                expected = readout.bias[n] + sum(
                    (map[b, c, t] * mask).sum() * readout.features[n, c] for c in range(3)
                )
                torch.testing.assert_close(drive[b, t, n], expected, atol=1e-12, rtol=1e-12)


def test_a_mask_has_width_and_orientation():
    readout = GaussianReadout(2, 1, sampling="mask").eval()
    diagonal = torch.tensor([[0.6, 0.0], [0.6, 0.05]])
    readout.spread.data = torch.stack((diagonal, diagonal * torch.tensor([[1.0], [-1.0]])))
    readout.mean.data.zero_()
    readout.features.data.fill_(1)
    map = torch.zeros(1, 1, 9, 9)
    map[..., 7, 7] = 1
    along, across = readout(map)[0]
    assert along > 100 * across


def test_a_mask_is_never_too_narrow_to_learn():
    readout = GaussianReadout(1, 1, sampling="mask", spread=1e-3).double().eval()
    # Wide along (1, 1) and too narrow across, and too narrow both ways.
    for spread in ([[0.3, -0.01], [0.3, 0.01]], [[0.01, 0.0], [0.0, 0.01]]):
        readout.zero_grad()
        readout.spread.data = torch.tensor([spread], dtype=DOUBLE)
        readout(torch.randn(1, 1, 8, 8, dtype=DOUBLE)).sum().backward()
        assert readout.spread.grad.isfinite().all()
        assert readout.spread.grad[0, :, 1].norm() > 1e-6


def test_narrow_masks_skip_pixels_but_not_what_can_be_seen():
    readout = GaussianReadout(3, 2, sampling="mask", spread=1e-4).eval()
    map = torch.randn(1, 2, 8, 8)
    wide, narrow = (by_dense_mask(readout, map, scale) for scale in (1000.0, 1.0))
    torch.testing.assert_close(narrow[0], narrow[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(wide[0], wide[1], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(wide[0], narrow[0], atol=1e-3)


def by_dense_mask(readout, map, scale):
    from ssl_vivit.neural.readout.positions import gaussian_mask

    readout.spread_scale = scale
    mask = gaussian_mask(readout.centres(), readout.widths(), (8, 8), align_corners=False)
    seen = torch.einsum("bdp,np->bnd", map.flatten(2), mask)
    return readout(map), (seen * readout.features).sum(-1) + readout.bias


def test_draws_have_the_gaussians_moments_and_differ_between_clips():
    readout = GaussianReadout(2, 1, mean_range=0).train()
    readout.mean.data = torch.tensor([[0.1, -0.1], [0.0, 0.2]])
    readout.spread.data = torch.tensor([[[0.2, 0.0], [0.1, 0.05]], [[0.0, 0.1], [0.15, 0.0]]])
    places = readout.positions(200_000).detach()
    torch.testing.assert_close(places.mean(0), readout.mean.detach(), atol=2e-3, rtol=0)
    for n in range(2):
        expected = (readout.spread[n] @ readout.spread[n].T).detach()
        torch.testing.assert_close(places[:, n].T.cov(), expected, atol=5e-4, rtol=0)


def test_noise_that_is_given_makes_the_draws():
    readout = GaussianReadout(5, 3, spread=0.2).double()
    map, noise = torch.randn(2, 3, 4, 6, 7, dtype=DOUBLE), torch.randn(2, 5, 2)
    with torch.no_grad():
        readout.spread.add_(0.1 * torch.randn(5, 2, 2))
    expected = torch.empty(2, 5, 2, dtype=DOUBLE)
    for b in range(2):
        for n in range(5):
            moved = readout.mean[n] + readout.spread[n] @ noise[b, n].double()
            expected[b, n] = moved.detach().clamp(-1, 1)
    torch.testing.assert_close(readout.positions(2, noise=noise).detach(), expected)
    torch.testing.assert_close(readout(map, noise=noise), readout.read(map, expected))
    with pytest.raises(
        NeuralModelError, match=r"noise has shape \(1, 5, 2\); 2 clips of 5 neurons"
    ):
        readout(map, noise=noise[:1])
    readout.eval()
    assert torch.equal(readout(map, noise=noise), readout(map))


def test_positions_are_drawn_once_per_clip_and_not_in_evaluation():
    readout = GaussianReadout(50, 4)
    map = torch.randn(1, 4, 1, 6, 6).expand(2, -1, 5, -1, -1)
    drive = readout(map)
    torch.testing.assert_close(drive, drive[:, :1].expand_as(drive))
    assert (drive[0] - drive[1]).abs().max() > 1e-3
    assert not torch.equal(readout(map), drive)
    readout.spread_scale = 0.0
    still = readout(map)
    readout.spread_scale = 1.0
    torch.testing.assert_close(still, readout.eval()(map))
    torch.testing.assert_close(still[0], still[1])


def test_annealed_widths_come_back_with_a_checkpoint():
    trained, loaded = (GaussianReadout(4, 3, sampling="mask").eval() for _ in range(2))
    trained.spread_scale = 0.3
    loaded.load_state_dict(trained.state_dict())
    map = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(loaded(map), trained(map), rtol=0, atol=0)


def test_a_position_beyond_the_edge_comes_back():
    readout = GaussianReadout(1, 1)
    readout.mean.data = torch.tensor([[1.7, 0.0]])
    readout.spread_scale = 0.0
    ramp = torch.linspace(2, 1, 8).expand(1, 1, 8, 8)
    readout.features.data.fill_(1)
    (-readout(ramp)).sum().backward()
    assert readout.mean.data[0, 0] == 1
    assert readout.mean.grad[0, 0] > 0  # a step against it leads back onto the map


def test_the_shifter_moves_all_positions_frame_by_frame():
    readout = GaussianReadout(7, 4, shifter=True).double().eval()
    map = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    pupil = torch.randn(2, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(readout(map, pupil), readout(map))  # no shift at the start
    for layer in readout.shifter.layers[::2]:
        layer.weight.data.normal_()
        layer.bias.data.normal_()
    pupil[1, 2] = math.nan
    drive = readout(map, pupil)
    places, shift = readout.positions(2), readout.shifter(pupil)
    assert shift.abs().max() > 0.5
    torch.testing.assert_close(drive, by_grid_sample(readout, map, places, shift))
    torch.testing.assert_close(drive[1, 2], readout(map)[1, 2])
    assert not torch.allclose(drive[0], readout(map)[0])
    torch.testing.assert_close(readout(map[:, :, 1], pupil[:, 1]), drive[:, 1])
    drive.square().sum().backward()
    for parameter in readout.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert readout.shifter.layers[0].weight.grad.abs().min() > 0


def test_masks_follow_the_shift_too():
    readout = GaussianReadout(4, 3, sampling="mask").double().eval()
    map = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    places = torch.rand(2, 4, 2, dtype=torch.float64) * 2 - 1
    shift = torch.rand(2, 5, 2, dtype=torch.float64) - 0.5
    drive = readout.read(map, places, shift)
    for t in range(5):
        frame = readout.read(map[:, :, t], places + shift[:, t, None])
        torch.testing.assert_close(drive[:, t], frame)


def test_frames_are_parts_of_the_whole():
    readout = GaussianReadout(6, 3).eval()
    map = torch.randn(2, 3, 4, 5, 5)
    whole = readout(map)
    torch.testing.assert_close(readout(map[:, :, 2]), whole[:, 2])
    tokens = map.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(readout(tokens), whole)


@pytest.mark.parametrize("sampling", ["point", "mask"])
def test_autocast_rounds_products_but_no_positions(sampling):
    readout = GaussianReadout(40, 32, sampling=sampling, mean_range=0.9, shifter=True).eval()
    readout.features.data.normal_()
    map = torch.randn(2, 32, 3, 20, 30).requires_grad_()
    pupil = torch.randn(2, 3, 2)
    exact = readout(map, pupil)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drive = readout(map, pupil)
        assert readout.positions(2).dtype == readout.shifts(pupil).dtype == torch.float32
    assert drive.dtype == torch.float32
    size = exact.std()
    assert (drive - exact).abs().max() < 0.02 * size
    (grads, exacts) = (
        torch.autograd.grad(out.square().mean(), (map, readout.features, readout.mean))
        for out in (drive, exact)
    )
    for ours, expected in zip(grads, exacts, strict=True):
        assert (ours - expected).norm() < 0.02 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["point", "mask"])
def test_compiled_numbers_are_the_same(sampling):
    readout = GaussianReadout(10, 4, sampling=sampling).eval()
    map = torch.randn(2, 4, 3, 5, 6, requires_grad=True)
    compiled = torch.compile(readout, backend="aot_eager", fullgraph=sampling == "point")
    for out in (readout(map), compiled(map)):
        out.square().sum().backward()
    torch.testing.assert_close(compiled(map), readout(map))
    grads = map.grad.clone()
    map.grad = None
    readout(map).square().sum().backward()
    torch.testing.assert_close(grads, 2 * map.grad)


def test_only_the_map_can_be_frozen_and_nothing_else_changes():
    readout = GaussianReadout(10, 4)
    map = torch.randn(1, 4, 3, 5, 6)
    places = readout.positions(1)
    wanted = (readout.mean, readout.features, readout.spread)
    frozen = torch.autograd.grad(
        readout.read(map, places).square().sum(), wanted, retain_graph=True
    )
    free = torch.autograd.grad(
        readout.read(map.requires_grad_(), places).square().sum(), wanted, retain_graph=True
    )
    for a, b in zip(frozen, free, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("cortex", ["add", "replace"])
def test_positions_come_from_the_cortex(cortex):
    coordinates = torch.randn(30, 3) * 100 + 400
    readout = GaussianReadout(30, 4, coordinates=coordinates, cortex=cortex, cortex_hidden=(8,))
    if cortex == "add":
        torch.testing.assert_close(readout.centres(), readout.mean)
    # A retinotopic map is found by gradient descent.
    wanted = 0.003 * (coordinates[:, :2] - 400)
    optimiser = torch.optim.Adam(readout.cortical_map.parameters(), lr=0.02)
    for _ in range(300):
        loss = (readout.centres() - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.02 * wanted.square().mean() + 0.005
    expected = {"feature_l1", "spread"} | ({"mean_offset"} if cortex == "add" else set())
    assert readout.regularisation().keys() == expected
    other = GaussianReadout(
        30, 4, coordinates=torch.randn(30, 3), cortex=cortex, cortex_hidden=(8,)
    )
    other.load_state_dict(readout.state_dict())
    torch.testing.assert_close(other.centres(), readout.centres())


def test_regularisation_is_a_mean_over_neurons():
    readout = GaussianReadout(5, 3, spread=0.4)
    terms = readout.regularisation()
    expected = sum(abs(f) for f in readout.features.detach().flatten().tolist()) / 5
    assert terms["feature_l1"].item() == pytest.approx(expected)
    assert terms["spread"].item() == pytest.approx(2 * 0.4**2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "points"}, "sampling 'points' is unknown; choose one of point, mask"),
        ({"gaussian": "round"}, "gaussian 'round' is unknown"),
        ({"cortex": "yes"}, "cortex 'yes' is unknown; choose one of off, add, replace"),
        ({"mean_range": 1.5}, "mean_range 1.5 must be between 0 and 1"),
        ({"spread": 0.0}, "spread 0.0 must be above 0"),
        ({"cortex_hidden": (0,)}, "cortex_hidden"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ReadoutConfig(**settings)


def test_what_does_not_fit_is_refused():
    readout = GaussianReadout(4, 3)
    with pytest.raises(NeuralModelError, match=r"\(2, 5, 4, 4\); this readout needs \(b, 3, t"):
        readout(torch.zeros(2, 5, 4, 4))
    with pytest.raises(
        NeuralModelError, match=r"pupil_centre has shape \(2, 6, 2\).*needs \(2, 7, 2\)"
    ):
        readout(torch.zeros(2, 3, 7, 4, 4), torch.zeros(2, 6, 2))
    with pytest.raises(NeuralModelError, match=r"coordinates of shape \(4, k\), not \(3, 3\)"):
        GaussianReadout(4, 3, coordinates=torch.randn(3, 3))
    with pytest.raises(NeuralModelError, match="differ between neurons"):
        GaussianReadout(4, 3, coordinates=torch.zeros(4, 3))
    with pytest.raises(NeuralModelError, match="at least 1"):
        GaussianReadout(0, 3)


def test_a_session_without_cortex_or_pupil_has_a_readout_without_them():
    config = ReadoutConfig(cortex="replace", shifter=True)
    bare = config.build(4, 3)
    assert bare.cortical_map is None
    assert bare.shifter is None
    full = config.build(4, 3, coordinates=torch.randn(4, 3), pupil=True)
    assert full.mean is None
    assert full.shifter is not None
    assert full.config == config
