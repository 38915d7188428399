"""Damaged files of extracted features are reported by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.files import FeatureFiles, load_features
from ssl_vivit.evaluation.features.parts import (
    INDEX,
    Part,
    part_path,
    read_index,
    read_part,
    write_part,
)

SETTINGS = {"features": "both", "part_size": 2}


def part(number):
    generator = torch.Generator().manual_seed(number)
    shapes = {"frames": (2, 1, 3), "pooled": (2, 4), "tokens": (2, 1, 2, 3, 4)}
    kinds = {"frames": torch.int64, "pooled": torch.float32, "tokens": torch.float16}
    tensors = {
        name: (torch.randn(shape, generator=generator) * 9).to(kinds[name])
        for name, shape in shapes.items()
    }
    return Part([f"é{number}.mp4", f"b{number}.mp4"], {f"c{number}.mp4": "cut off"}, tensors)


@pytest.fixture
def extracted(tmp_path):
    """Return finished features of two parts."""
    out = tmp_path / "out"
    files = FeatureFiles(out, SETTINGS, 2)
    files.begin(print)
    for number in range(2):
        files.write(number, *part(number)[::2], part(number).skipped)
    files.finish({})
    return out


def same(a, b):
    tensors = zip(a.tensors.items(), b.tensors.items(), strict=True)
    return a[:2] == b[:2] and all(n == m and torch.equal(x, y) for (n, x), (m, y) in tensors)


def flips(whole):
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        yield bytes(damaged)


def test_any_flipped_bit_of_a_part_is_detected_or_has_no_effect(extracted):
    path = part_path(extracted, 1)
    whole, harmless = path.read_bytes(), 0
    for damaged in flips(whole):
        path.write_bytes(damaged)
        try:
            found = read_part(extracted, 1)
        except DataError:
            continue
        assert same(found, part(1))
        harmless += 1
    # Space at the header's end and the names of checksums.
    assert harmless < 0.1 * len(whole)


def test_any_flipped_bit_of_the_index_is_detected_or_has_no_effect(extracted):
    path = extracted / INDEX
    whole, expected, harmless = path.read_bytes(), read_index(extracted), 0
    for damaged in flips(whole):
        path.write_bytes(damaged)
        try:
            found = read_index(extracted)
        except DataError:
            continue
        assert {name: found.get(name) for name in expected} == expected
        harmless += 1
    assert harmless < 0.2 * len(whole)


@pytest.mark.parametrize("keep", [0, 7, 100, -2])
def test_truncated_files_are_named_and_parts_are_recomputed(extracted, keep):
    before = load_features(extracted)
    path = part_path(extracted, 0)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"features-00000\S+ is missing or damaged .* to recompute it"
    ):
        load_features(extracted, "pooled")
    files = FeatureFiles(extracted, SETTINGS, 2)
    with pytest.raises(ValueError, match=r"features-00000\S+ is missing or damaged"):
        files.finish({})
    told = []
    files.begin(told.append)
    assert [line.partition(" (")[0] for line in told] == [f"{path} is missing or damaged"]
    assert files.missing() == [0]
    with pytest.raises(ValueError, match="is missing or damaged"):
        load_features(extracted)
    write_part(extracted, 0, part(0))
    files.begin(told.append)
    files.finish({})
    assert len(told) == 1
    assert load_features(extracted).keys == before.keys
    index = extracted / INDEX
    index.write_bytes(index.read_bytes()[:keep])
    for again in (lambda: load_features(extracted), lambda: FeatureFiles(extracted, SETTINGS, 2)):
        with pytest.raises(DataError, match=r"index\.json is damaged .*again into another folder"):
            again()


def test_only_what_is_asked_for_is_read_and_compared(extracted):
    path = part_path(extracted, 0)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1  # tokens lie behind the others
    path.write_bytes(damaged)
    assert torch.equal(load_features(extracted, "pooled").pooled[:2], part(0).tensors["pooled"])
    with pytest.raises(DataError, match="the checksum of tokens does not match"):
        load_features(extracted, "tokens")


def test_files_of_earlier_versions_are_read_without_checksums(extracted):
    for number in range(2):
        keys, skipped, tensors = part(number)
        facts = json.dumps({"keys": keys, "skipped": skipped})
        save_file(tensors, part_path(extracted, number), metadata={"part": facts})
    index = json.loads((extracted / INDEX).read_text())
    del index["crc32"]
    (extracted / INDEX).write_text(json.dumps(index))
    FeatureFiles(extracted, SETTINGS, 2).begin(pytest.fail)
    found = load_features(extracted)
    assert found.keys == [*part(0).keys, *part(1).keys]
    assert torch.equal(found.tokens[2:], part(1).tensors["tokens"])
