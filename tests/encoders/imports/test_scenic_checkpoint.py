"""Checkpoint files of Scenic: both layouts, chunked arrays, invalid files."""

import os
import tracemalloc

import msgpack
import numpy as np
import pytest
from parity_files import PARITY, ScenicCase

from ssl_vivit.encoders.imports import from_scenic, read_scenic_checkpoint

FILE = PARITY / "scenic_ckpt_model2_token_newparams.msgpack"


def packed(array, code=1, dtype=None):
    """Return an array as flax serialises it."""
    array = np.asarray(array)
    content = (array.shape, dtype or array.dtype.name, array.tobytes("C"))
    return msgpack.ExtType(code, msgpack.packb(content, use_bin_type=True))


def write(path, tree):
    path.write_bytes(msgpack.packb(tree, use_bin_type=True, strict_types=True))
    return path


def nested(flat):
    tree = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = packed(array)
    return tree


def test_the_published_file_contains_the_parameters_bit_for_bit():
    case = ScenicCase("model2_token")
    params = read_scenic_checkpoint(FILE)
    expected = case.tree()
    assert params.keys() == expected.keys()
    for name, array in params.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name])
    model = from_scenic(params, None, case.video_shape).double()
    np.testing.assert_allclose(
        model(case.video).detach(), case.arrays["logits_f64"], rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "layout",
    [
        lambda tree: {"params": tree, "opt_state": {"0": {"mu": tree}}, "global_step": 3},
        lambda tree: {"params": {"params": tree}},
        lambda tree: {
            "global_step": packed(7, code=3),
            "optimizer": {"target": tree, "state": {"step": 7, "param_states": {}}},
            "model_state": {},
            "rng": packed(np.zeros(2, np.uint32)),
            "accum_train_time": 1.5,
            "metadata": None,
        },
        lambda tree: {"optimizer": {"target": {"params": tree}}},
    ],
)
def test_every_published_layout_is_read(tmp_path, layout):
    expected = ScenicCase("model2_token_lowvar").tree()
    params = read_scenic_checkpoint(write(tmp_path / "checkpoint", layout(nested(expected))))
    assert params.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(params[name], array)


def test_arrays_that_flax_cut_are_joined(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    parts = {str(i): packed(part) for i, part in enumerate(np.split(whole.ravel(), [10, 20]))}
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 3, "2": 4},
        "chunks": parts,
    }
    file = write(tmp_path / "checkpoint", {"params": {"embedding": {"kernel": chunked}}})
    np.testing.assert_array_equal(read_scenic_checkpoint(file)["embedding/kernel"], whole)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8"])
def test_numeric_dtypes_are_kept(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read = read_scenic_checkpoint(write(tmp_path / "c", {"params": {"a": packed(array)}}))["a"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_bfloat16_becomes_float32(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    leaf = packed(halves, dtype="bfloat16")
    read = read_scenic_checkpoint(write(tmp_path / "c", {"params": {"a": leaf}}))["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def test_scalars_are_read(tmp_path):
    tree = {"params": {"scale": packed(np.float32(2.5), code=3)}}
    read = read_scenic_checkpoint(write(tmp_path / "c", tree))["scale"]
    assert read.shape == ()
    assert read == np.float32(2.5)


GOOD = packed(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("text", "block/a is a str, not an array"),
        (None, "block/a is a NoneType, not an array"),
        (3, "block/a is a int, not an array"),
        ([1.0, 2.0], "block/a is a list, not an array"),
        (msgpack.ExtType(2, b"\x92\x01\x02"), "block/a is msgpack extension 2, not an array"),
        (msgpack.ExtType(77, GOOD.data), "block/a is msgpack extension 77, not an array"),
        (packed(np.zeros(2), dtype="object"), "block/a is an array of object, not of numbers"),
        (packed(np.zeros(2), dtype="O"), "block/a is an array of O, not of numbers"),
        (packed(np.zeros(2), dtype="complex64"), "array of complex64"),
        (msgpack.ExtType(1, b"\xc1nonsense"), "block/a is a damaged array"),
        (msgpack.ExtType(1, GOOD.data[:-4]), "block/a is a damaged array"),
        (msgpack.ExtType(1, msgpack.packb(((2, 3), "float32", b"1234"))), "4 bytes for float32"),
        (msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b"1234"))), "is a damaged array"),
        (msgpack.ExtType(1, msgpack.packb((5, "float32", b"1234"))), "is a damaged array"),
        (
            {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": GOOD}},
            "damaged chunked array: 6 numbers",
        ),
        ({"__msgpack_chunked_array__": True, "shape": 9}, "damaged chunked array"),
    ],
)
def test_a_parameter_that_is_not_an_array_is_named(tmp_path, leaf, message):
    file = write(tmp_path / "checkpoint", {"params": {"block": {"b": GOOD, "a": leaf}}})
    with pytest.raises(ValueError, match=message) as caught:
        read_scenic_checkpoint(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, share):
    content = FILE.read_bytes()
    file = tmp_path / "checkpoint"
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="truncated or not a flax msgpack") as caught:
        read_scenic_checkpoint(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip archive", "not a flax msgpack"),
        (b"\x80\x04\x95 a pickle", "not a flax msgpack"),
        (b"\x91" * 5000, "not a flax msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not a flax msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not a flax msgpack"),
        (msgpack.packb([1, 2]), "map of names, not list"),
        (msgpack.packb({"weights": 1}), "neither params nor optimizer/target, but weights"),
        (msgpack.packb({}), "but nothing"),
        (msgpack.packb({"params": {}}), "neither params"),
        (msgpack.packb({1: 2}), "not a flax msgpack"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    file = tmp_path / "checkpoint"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_scenic_checkpoint(file)
    assert "\n" not in str(caught.value)


def test_damage_anywhere_gives_one_line_and_no_other_error(tmp_path):
    content = bytearray(FILE.read_bytes())
    rng = np.random.default_rng(0)
    file = tmp_path / "checkpoint"
    refused = []
    for _ in range(150):
        damaged = content.copy()
        for place in rng.integers(0, len(content), 40):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            read_scenic_checkpoint(file)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert not any("\n" in message for message in refused)


def test_a_false_length_asks_for_no_memory(tmp_path):
    file = tmp_path / "checkpoint"
    file.write_bytes(b"\x81\xa6params\x81\xa1a\xdd\x7f\xff\xff\xff")
    tracemalloc.start()
    with pytest.raises(ValueError, match="not a flax msgpack"):
        read_scenic_checkpoint(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_directory_and_a_missing_file_have_different_messages(tmp_path):
    with pytest.raises(ValueError, match="is a directory; give the checkpoint file in it"):
        read_scenic_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_scenic_checkpoint(os.fspath(tmp_path / "none"))
