"""Rows of the comparison, compared with features and probes computed by hand."""

import pytest
import torch

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from ssl_vivit.encoders import create_encoder
from ssl_vivit.encoders.adapt import adapt
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.extraction import untrained
from ssl_vivit.evaluation.probes.comparison import ProbeSettings, compare, subject
from ssl_vivit.evaluation.probes.data import ProbeData, open_parts
from ssl_vivit.evaluation.probes.labelled_videos import ClevrerLabels
from ssl_vivit.evaluation.probes.linear import probe
from ssl_vivit.evaluation.probes.report import Row


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    render(folder / "v", 20, size=(24, 36), num_frames=32, workers=1, progress=False)
    pack(folder / "v", folder / "s", folder / "v", frames=32, workers=1, progress=False)
    return open_parts(ProbeData(shards=str(folder / "s" / "*.tar"), held_out=0.4, workers=0))


@pytest.fixture
def one(parts):
    torch.manual_seed(0)
    encoder = create_encoder(
        "vivit_tiny", num_frames=4, image_size=(16, 24), tubelet_size=(2, 8, 8), embed_dim=24,
        num_heads=2, spatial_depth=1, temporal_depth=1,
    ).eval()  # fmt: skip
    encoder.preprocessing = {"mean": [0.5], "std": [0.1], "fps": 25.0, "frame_stride": 2}
    return lambda clips: subject("it", [encoder], parts, clips=clips)


def by_hand(encoder, prepared, part, choose, epoch, spread=False):
    """Return pooled features of each video, and labels of all its clips together."""
    loader = part.batches(prepared, part.indices, spread=spread)
    labels, features = ClevrerLabels(part.videos), []
    batches = list(loader.once(1, "cpu", epoch=epoch))
    with torch.no_grad():
        for batch in batches:
            views = [encoder(batch["clips"][:, v]).pooled[0] for v in range(prepared.clip.views)]
            features.append(choose(torch.stack(views)))
    told = [labels(batch) for batch in batches]
    return torch.stack(features), {name: torch.cat([t[name] for t in told]) for name in told[0]}


def found_by(one, parts, tmp_path, clips, **settings):
    settings = {"probes": ["linear"], "seeds": 2, "summary": "pooled", "batch_size": 5} | settings
    each = one(clips)
    asked = ProbeSettings(clips=clips, **settings)
    return each, compare([each], parts, asked, device=torch.device("cpu"), scratch=tmp_path)


def assert_scores(found, row, seed, expected):
    for name, value in expected.items():
        got = found.rows[row][name][seed]
        assert got == pytest.approx(value, rel=1e-3, abs=1e-3, nan_ok=True), (row, name)


def test_several_clips_are_their_mean_and_one_is_the_middle_one(one, parts, tmp_path):
    each, found = found_by(one, parts, tmp_path, 3)
    for seed in range(2):
        fresh = untrained(each.encoder, seed)
        for name, encoder in (("it", each.encoder), ("untrained", fresh)):
            for clips, choose in (("3 clips", lambda v: v.mean(0)), ("1 clip", lambda v: v[1])):
                (train, train_labels), (test, test_labels) = (
                    by_hand(encoder, each.prepared, part, choose, seed) for part in parts
                )
                expected = probe(train, train_labels, test, test_labels, seed=seed)
                row = Row(name, clips, "linear", baseline=name == "untrained")
                assert_scores(found, row, seed, expected)


def test_a_single_clip_is_drawn_for_each_seed(one, parts, tmp_path):
    each, found = found_by(one, parts, tmp_path, 1)
    every = []
    for seed in range(2):
        (train, train_labels), (test, test_labels) = (
            by_hand(each.encoder, each.prepared, part, lambda v: v[0], seed) for part in parts
        )
        every.append(train)
        expected = probe(train, train_labels, test, test_labels, seed=seed)
        assert_scores(found, Row("it", "", "linear"), seed, expected)
    assert not torch.equal(*every)


def test_seeds_take_encoders_that_were_pretrained_alike_in_turn(one, parts, tmp_path):
    first = one(1).encoder
    other = untrained(first, 5)
    both = subject("both", [first, other], parts)
    settings = ProbeSettings(probes=["linear"], seeds=4, summary="pooled", batch_size=5)
    found = compare([both], parts, settings, device=torch.device("cpu"), scratch=tmp_path)
    for seed, encoder in enumerate((first, other, first, other)):
        (train, train_labels), (test, test_labels) = (
            by_hand(encoder, both.prepared, part, lambda v: v[0], seed) for part in parts
        )
        expected = probe(train, train_labels, test, test_labels, seed=seed)
        assert_scores(found, Row("both", "", "linear"), seed, expected)
    assert "both: 2 encoders, used by the seeds in turn" in found.legend()


def test_encoders_that_differ_in_more_than_their_seed_are_refused(one, parts):
    first = one(1).encoder
    other = untrained(first, 5)
    other.preprocessing = {"mean": [0.5], "std": [0.1], "fps": 12.5, "frame_stride": 2}
    with pytest.raises(DataError, match="both matches encoders of several architectures or clips"):
        subject("both", [first, other], parts)


def test_one_long_clip_has_the_frames_and_the_labels_of_all(one, parts, tmp_path):
    each, found = found_by(one, parts, tmp_path, 3, long_clip=True)
    long = adapt(each.encoder, num_frames=12)
    prepared = each.prepared.one_long_clip()
    assert prepared.clip.length == 12
    features, labels = [], []
    for part in parts:
        features.append(by_hand(long, prepared, part, lambda v: v[0], 0, True)[0])
        labels.append(by_hand(each.encoder, each.prepared, part, lambda v: v[0], 0)[1])
    expected = probe(features[0], labels[0], features[1], labels[1])
    # It lies in the middle, whatever the seed.
    assert_scores(found, Row("it", "1 long clip", "linear"), 0, expected)
    dataset = parts.train.dataset(prepared, spread=True)
    assert dataset.sample(0, 7)["frames"][0].tolist() == list(range(4, 28, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": []}, "--probes is empty"),
        ({"clips": 0}, "--clips is 0"),
        ({"long_clip": True}, "set --clips to 2 or more"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**settings)
