"""Files with the results of benchmarks: JSON, and the page of the documentation."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from side_by_side import table

RESULTS = Path(__file__).parents[2] / "docs" / "published" / "benchmarks"
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "measured.md"
_PACKAGES = ("torch", "timm", "transformers", "vit-pytorch", "av", "torchcodec")


@dataclass
class Table:
    """One table of a benchmark.

    Attributes:
        caption: a sentence that explains the numbers.
        head: names of the columns.
        rows: cells of each row.
    """

    caption: str
    head: list[str]
    rows: list[list[str]]


@dataclass
class Results:
    """Results of a benchmark, with its command, chip and versions.

    Attributes:
        name: name of the benchmark's file, without ``bench_``.
        title: heading on the page.
        tables: tables with the results.
        figure: file name of a plot in the folder of the results; empty for none.
        command: command that repeats the benchmark.
        chip: name of the GPU or the CPU's architecture.
        versions: package → version.
    """

    name: str
    title: str
    tables: list[Table]
    figure: str = ""
    command: str = field(default_factory=lambda: _command())
    chip: str = ""
    versions: dict[str, str] = field(default_factory=lambda: _versions())


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--out``, a folder for the files of results."""
    parser.add_argument("--out", type=Path, help="folder for JSON and plot; none by default")


def publish(results: Results, device: str, out: Path | None) -> None:
    """Print the tables; with a folder, write ``NAME.json`` there, which :func:`page` reads.

    Names of results of a GPU end with the name of the GPU, so that they do not replace results of a
    CPU.
    """
    results.chip = chip_name(device)
    if device == "cuda":
        results.name += "_gpu"
    for each in results.tables:
        print(f"{each.caption}\n\n{table(each.head, each.rows)}\n")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{results.name}.json").write_text(json.dumps(asdict(results), indent=1) + "\n")


def section(results: dict) -> str:
    """Return the Markdown of one benchmark, with its command, chip and versions."""
    lines = [f"## {results['title']}", ""]
    for each in results["tables"]:
        lines += [each["caption"], "", table(each["head"], each["rows"]), ""]
    if results["figure"]:
        lines += [f"![{results['title']}](../published/benchmarks/{results['figure']})", ""]
    versions = ", ".join(f"{name} {found}" for name, found in results["versions"].items())
    lines += [f"`{results['command']}` on {results['chip']}; {versions}.", ""]
    return "\n".join(lines)


def page(folder: Path = RESULTS) -> str:
    """Return the page of all stored results."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    head = [
        "# Measured speed and memory",
        "",
        "This page has all stored results of the benchmarks; `make bench` measures them again and "
        "writes the page. Figures of a CPU are ratios of programs that were measured in turn in one "
        "run. Absolute times are given only for GPUs. [Speed and memory](benchmarks.md) summarises "
        "the results.",
        "",
    ]
    if not any(each["name"].endswith("_gpu") for each in found):
        head += [
            "No benchmark has been run on a GPU yet. `make bench-gpu` runs the benchmarks on a GPU.",
            "",
        ]
    return "\n".join([*head, *(section(each) for each in found)])


def chip_name(device: str) -> str:
    """Return the name of the GPU, or the CPU's architecture with its one thread."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"one thread of an {platform.machine()} CPU"


def _command() -> str:
    own = Path(sys.argv[0]).name
    words, skip = [], False
    for word in sys.argv[1:]:
        skip = (skip and not word.startswith("--")) or word == "--out"
        words += [] if skip else [word]
    return shlex.join(["python", f"tests/benchmarks/{own}", *words])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
