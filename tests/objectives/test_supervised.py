"""The supervised objective: losses computed by hand, units of numbers, several clips per video."""

import math

import pytest
import torch

from ssl_vivit.encoders import create_encoder, load_encoder
from ssl_vivit.objectives.supervised import Supervised
from ssl_vivit.objectives.targets import NumberScale, Target, columns, target_loss

KINDS, EVENT = Target("presence", "kinds", 3), Target("has_collision", "event")
SPEED, CLASS = Target("mean_speed", "number"), Target("class", "class", 4)
TARGETS = (KINDS, EVENT, SPEED, CLASS)
LABELS = {
    "presence": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
    "has_collision": torch.tensor([1.0, 0.0]),
    "mean_speed": torch.tensor([3.0, 7.0]),
    "class": torch.tensor([2, 0]),
}


def objective(targets=TARGETS) -> Supervised:
    torch.manual_seed(0)
    encoder = create_encoder(
        "vivit_tiny", num_frames=4, image_size=(16, 24), tubelet_size=(2, 8, 8), embed_dim=24,
        num_heads=2, spatial_depth=1, temporal_depth=1,
    )  # fmt: skip
    return Supervised(encoder, targets, NumberScale.of(LABELS, targets))


def sigmoid_loss(logit: float, label: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


def test_losses_equal_those_by_hand():
    made = objective()
    clips = torch.randn(2, 1, 3, 4, 16, 24)
    step = made({"clips": clips, "labels": LABELS})
    outputs = made.outputs(clips).tolist()
    expected = {
        "presence": sum(
            sigmoid_loss(outputs[i][k], float(LABELS["presence"][i, k]))
            for i in range(2)
            for k in range(3)
        )
        / 6,
        "has_collision": (sigmoid_loss(outputs[0][3], 1) + sigmoid_loss(outputs[1][3], 0)) / 2,
        # 3 and 7 have mean 5 and deviation 2: −1 and 1.
        "mean_speed": ((outputs[0][4] + 1) ** 2 + (outputs[1][4] - 1) ** 2) / 2,
        "class": sum(
            math.log(sum(map(math.exp, outputs[i][5:]))) - outputs[i][5 + wanted]
            for i, wanted in enumerate([2, 0])
        )
        / 2,
    }
    for name, value in expected.items():
        assert step.metrics[f"loss_{name}"].item() == pytest.approx(value, rel=1e-5)
    assert step.loss.item() == pytest.approx(sum(expected.values()) / 4, rel=1e-5)


def test_numbers_are_predicted_in_their_own_units_and_clips_averaged():
    made = objective().eval()
    clips = torch.randn(2, 3, 3, 4, 16, 24)
    got = made.predict(clips)
    with torch.no_grad():
        each = torch.stack([made.classifier(clips[:, view]) for view in range(3)]).mean(0)
    torch.testing.assert_close(got["mean_speed"], each[:, 4:5] * 2 + 5)
    torch.testing.assert_close(got["presence"], each[:, :3])


def test_it_learns_and_its_encoder_can_be_loaded(tmp_path):
    made = objective((EVENT, SPEED))
    batch = {"clips": torch.randn(2, 1, 3, 4, 16, 24), "labels": LABELS}
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    first = made(batch).loss.item()
    for _ in range(30):
        optimizer.zero_grad()
        made(batch).loss.backward()
        optimizer.step()
    made.eval()
    assert made(batch).loss.item() < first / 10
    predicted = made.predict(batch["clips"])["mean_speed"].flatten()
    torch.testing.assert_close(predicted, LABELS["mean_speed"], atol=0.6, rtol=0)
    made.export(tmp_path / "encoder", training={})
    weight = load_encoder(tmp_path / "encoder").tubelets.weight
    assert torch.equal(weight, made.classifier.encoder.tubelets.weight)


def test_a_number_that_never_changes_has_a_finite_loss():
    labels = {"mean_speed": torch.full((3,), 2.0)}
    scale = NumberScale.of(labels, (SPEED,))
    assert target_loss(torch.zeros(3, 1), labels["mean_speed"], SPEED, scale) == 0


def test_classes_become_indicators():
    assert columns(torch.tensor([1, 3]), CLASS).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
