"""Give changed copies of small files to their readers, in processes with limited time and memory."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ssl_vivit.errors import UserError

SECONDS = 10
BYTES = 2**30

# Whole numbers at which sizes, offsets and counters of files go wrong.
NUMBERS = (
    0, 1, -1, 2, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32, 10**9, 10**12, 2**63 - 1, 2**63,
    2**64, 10**30, 10**400, -(10**9), -(10**30),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, float("nan"), float("inf"), -float("inf"), 0.5, 1e308, 1e-320, True, False, None, "",
    "x", "\n", "\x00", "é" * 3, "../../etc/passwd", "1e3", [], {}, [[]], [None], [0] * 10_000,
    "x" * 100_000, {"": None}, {"x": {"x": {}}},
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A function of the package that reads files of unknown origin.

    Args:
        name: name for messages; also the seed of the inputs.
        make: function that writes a small valid folder.
        files: names of the files in the folder that are changed, one at a time.
        read: function that reads the folder and does not change it.
        quick: number of inputs in the quick test.
        mend: function that updates the checksums of the folder after a file was changed.
    """

    name: str
    make: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], object]
    quick: int = 60
    mend: Callable[[Path], object] | None = None


@dataclass(frozen=True)
class Outcome:
    """Number of inputs that a reader accepted and refused, and all other results."""

    accepted: int
    refused: int
    faults: list[str]


def changed(content: bytes, draw: random.Random) -> bytes:
    """Return a copy of a file with one to four changes of its bytes or values."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        kinds = [bytes_changed]
        if (tree := _tree(content)) is not None:
            kinds += [lambda content, draw, tree=tree: _text(tree, content, draw)] * 3
        elif _header(content) is not None:
            kinds += [header_changed] * 2
        content = draw.choice(kinds)(content, draw)
    return content


def bytes_changed(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut, repeat, swap, insert or overwrite bytes; half of the time near the start."""
    damaged = bytearray(content or b"\0")
    size = len(damaged)
    place = draw.randrange(min(size, 200) if draw.random() < 0.5 else size)
    length = draw.randrange(1, min(size, 64) + 1)
    kind = draw.randrange(7)
    if kind == 0:
        damaged[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del damaged[place:]
    elif kind == 2:
        del damaged[place : place + length]
    elif kind == 3:
        damaged[place:place] = damaged[place : place + length] * draw.choice((1, 2, 100))
    elif kind == 4:
        other = draw.randrange(size)
        piece = bytes(damaged[place : place + length])
        damaged[place : place + length] = damaged[other : other + length]
        damaged[other : other + length] = piece
    elif kind == 5:
        number = draw.choice(NUMBERS) % 2**64
        packed = draw.choice(
            (struct.pack("<Q", number), struct.pack(">Q", number), struct.pack("<I", number % 2**32),
             str(number).encode(), f"{number:o}".encode(), b"\0" * length, b"\xff" * length)
        )  # fmt: skip
        damaged[place : place + draw.choice((0, len(packed)))] = packed
    else:
        for at in range(place, min(place + length, size)):
            damaged[at] = draw.randrange(256)
    return bytes(damaged)


def tree_changed(tree: Any, draw: random.Random) -> Any:
    """Replace, remove, rename or repeat one value anywhere in nested lists and dictionaries."""
    tree = copy.deepcopy(tree)
    places = [(None, None), *_places(tree)]
    parent, key = draw.choice(places)
    if parent is None:
        return draw.choice(VALUES) if draw.random() < 0.2 else tree
    kind = draw.random()
    if kind < 0.6:
        parent[key] = copy.deepcopy(draw.choice(VALUES))
    elif kind < 0.7 and isinstance(parent[key], int | float) and abs(parent[key]) < 1e15:
        parent[key] = parent[key] * draw.choice((-1, 2, 10, 1e6)) + draw.choice((0, 1, -1))
    elif kind < 0.8:
        del parent[key]
    elif isinstance(parent, dict):
        parent[str(draw.choice(("x", "", "class_path", *parent)))] = parent[key]
    else:
        parent.insert(key, copy.deepcopy(parent[key]))
    return tree


def header_changed(content: bytes, draw: random.Random) -> bytes:
    """Change a value in the header of a safetensors file, and update the length of the header."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(tree_changed(_header(content), draw)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((tree, key))
        if isinstance(tree[key], dict | list):
            found += _places(tree[key])
    return found


def _tree(content: bytes) -> Any:
    """Return the content of a JSON or YAML text, or of the first line of a file of JSON lines; None for others."""
    try:
        text = content.decode()
        found = json.loads(text) if text.lstrip().startswith(("{", "[")) else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _text(tree: Any, content: bytes, draw: random.Random) -> bytes:
    made = tree_changed(tree, draw)
    if content.lstrip().startswith((b"{", b"[")):
        return json.dumps(made).encode()
    return yaml.safe_dump(made).encode()


def _header(content: bytes) -> Any:
    try:
        size = struct.unpack("<Q", content[:8])[0]
        found = json.loads(content[8 : 8 + size]) if 2 <= size < len(content) else None
    except (struct.error, ValueError):
        return None
    return found if isinstance(found, dict) else None


def attack(reader: Reader, folder: Path, inputs: int, first: int = 0) -> Outcome:
    """Give changed files to a reader in forked processes that may allocate one GiB.

    Args:
        reader: the reader.
        folder: an empty one.
        inputs: number of inputs; each input depends only on its own number.
        first: number of the first one.
    """
    valid = folder / "valid"
    reader.make(valid)
    reader.read(valid)
    progress = folder / "progress.jsonl"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _try_all(reader, valid, folder, range(first, first + inputs), progress)
            status = 0
        finally:
            os._exit(status)
    status = _ended(pid, progress)
    lines = [json.loads(line) for line in progress.read_text().splitlines()]
    faults = [f"{reader.name}, input {n}: {told}" for n, told in lines if told not in ("", "ok")]
    if status:
        faults.append(f"{reader.name}, input {first + len(lines)}: ended the process ({status})")
    told = [told for _, told in lines]
    return Outcome(told.count("ok"), told.count(""), faults)


def _ended(pid: int, progress: Path) -> int:
    """Wait for a process; kill it if it runs long after the alarm, for example in a C library."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if progress.exists() and time.time() - progress.stat().st_mtime > 3 * SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _try_all(reader: Reader, valid: Path, folder: Path, numbers: range, progress: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("ignore")
    copied = folder / "changed"
    with progress.open("w") as file, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        for number in numbers:
            draw = random.Random(f"{reader.name} {number}")
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(valid, copied)
            path = copied / draw.choice(reader.files)
            path.write_bytes(changed(path.read_bytes(), draw))
            if reader.mend is not None:
                with contextlib.suppress(Exception):
                    reader.mend(copied)
            signal.alarm(SECONDS)
            file.write(json.dumps([number, _told(reader, copied)]) + "\n")
            file.flush()
            signal.alarm(0)


def _told(reader: Reader, folder: Path) -> str:
    """Return "ok" for an accepted input, "" for one that was refused in one line, else the fault."""
    begun = time.monotonic()
    try:
        reader.read(folder)
        told = "ok"
    except UserError as error:
        line = str(error)
        told = "" if line and len(line.splitlines()) == 1 else f"not one line: {line!r}"
        if not told and len(line) > 3000:
            told = f"a line of {len(line)} characters: {line[:100]} …"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})"
    if (seconds := time.monotonic() - begun) > SECONDS:
        return f"took {seconds:.0f} s, {told}"
    return told


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS} seconds")
