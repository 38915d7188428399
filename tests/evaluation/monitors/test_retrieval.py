"""Retrieval, compared with a slow loop over pairs."""

import pytest
import torch

from ssl_vivit.evaluation.monitors.retrieval import (
    chance,
    collect,
    nearest_videos,
    retrieval_top1,
)


def cosine(a, b):
    return (a @ b / a.norm() / b.norm()).item()


@pytest.mark.parametrize(("n", "views"), [(2, 2), (7, 2), (5, 3)])
def test_top1_equals_a_loop_over_clips(n, views):
    torch.manual_seed(n)
    features = torch.randn(n, 1, 4) + torch.randn(n, views, 4)
    clips = [(video, view) for video in range(n) for view in range(views)]
    hits = 0
    for one in clips:
        others = [other for other in clips if other != one]
        nearest = max(others, key=lambda other: cosine(features[one], features[other]))
        hits += nearest[0] == one[0]
    assert retrieval_top1(features) == pytest.approx(hits / len(clips))


def test_chance_equals_the_score_of_random_features():
    torch.manual_seed(0)
    shares = [retrieval_top1(torch.randn(6, 3, 64)) for _ in range(400)]
    assert sum(shares) / len(shares) == pytest.approx(chance(6, 3), abs=0.015)


def test_identical_views_are_always_found():
    assert retrieval_top1(torch.randn(9, 1, 8).expand(9, 2, 8)) == 1.0


def test_nearest_videos_leave_the_query_out_and_come_in_order():
    torch.manual_seed(0)
    features = torch.randn(8, 5)
    queries = torch.tensor([6, 1])
    indices, similarity = nearest_videos(features, queries, 3)
    for row, query in enumerate(queries.tolist()):
        others = [i for i in range(8) if i != query]
        others.sort(key=lambda i: -cosine(features[query], features[i]))
        assert indices[row].tolist() == others[:3]
        expected = [cosine(features[query], features[i]) for i in others[:3]]
        assert similarity[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_collect_keeps_order_and_middle_frames():
    clips = torch.arange(5 * 2 * 1 * 3 * 2 * 2, dtype=torch.float32).view(5, 2, 1, 3, 2, 2)
    numbers = torch.arange(5 * 2 * 3).view(5, 2, 3)
    batches = [
        {"clips": clips[:3], "key": ["a", "b", "c"], "frames": numbers[:3]},
        {"clips": clips[3:], "key": ["d", "e"], "frames": numbers[3:]},
    ]
    found = collect(lambda batch: batch["clips"].double().flatten(2)[:, :, :4], batches)
    assert found.keys == ["a", "b", "c", "d", "e"]
    assert torch.equal(found.features, clips.flatten(2)[:, :, :4])
    assert torch.equal(found.middle_frames, clips[:, :, :, 1])
    assert torch.equal(found.frame_numbers, numbers[:, :, 1])
