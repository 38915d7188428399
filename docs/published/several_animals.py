"""Print and draw comparisons of models of neurons over several animals.

python docs/published/several_animals.py ANIMAL/comparison.json … --compare fresh masked --out FIGURE.png

Each file is of one animal, by ``recipes/compare_neural.py --trials``. Seeds of an animal are averaged
first; means and standard errors are over animals. ``--compare`` names a row, and those whose
differences from it are shown, paired animal by animal; it may be repeated. ``--mean NAME ROW ROW``
puts the mean of rows, such as several random encoders, in their place. ``--over`` names what differs
between the files in place of animals, such as the draws of the trials of one animal.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_vivit.evaluation.figures import COLOURS, LINES, caption, legend_below, panel_figure, save
from ssl_vivit.evaluation.neurons.comparison import LABELS, MARKERS

# Row → number of training trials → the score of each animal.
Scores = dict[str, dict[int, np.ndarray]]


def read(paths: Sequence[Path], tier: str) -> tuple[str, Scores]:
    """Read the metric's name and the scores of animals, in the order of the files."""
    told = [json.loads(path.read_text()) for path in paths]
    metrics = {each["metric"] for each in told}
    if len(metrics) > 1:
        raise SystemExit(f"the files have different metrics: {', '.join(sorted(metrics))}")
    (metric,) = metrics
    found: dict[str, dict[int, list[float]]] = {}
    for each in told:
        for result in each["results"]:
            if result["tier"] == tier:
                by_trials = found.setdefault(result["row"], {})
                by_trials.setdefault(int(result["trials"]), []).append(result["mean"])
    for row, by_trials in found.items():
        for trials, values in by_trials.items():
            if len(values) != len(paths):
                raise SystemExit(f"{row} with {trials} trials is in {len(values)} of {len(paths)}")
    return metric, {
        row: {trials: np.array(values) for trials, values in by_trials.items()}
        for row, by_trials in found.items()
    }


def with_means(scores: Scores, means: Sequence[Sequence[str]]) -> Scores:
    """Replace rows by their mean in each animal.

    Args:
        scores: of all rows.
        means: the name of each mean, and the rows that it is taken over.
    """
    found = dict(scores)
    for name, *rows in means:
        check_rows(rows, scores)
        several = [found.pop(row) for row in rows]
        found = {
            name: {n: np.mean([row[n] for row in several], axis=0) for n in several[0]}
        } | found
    return found


def check_rows(rows: Sequence[str], scores: Scores) -> None:
    """Refuse rows that are not in the files."""
    if unknown := [row for row in rows if row not in scores]:
        raise SystemExit(f"there is no row {', '.join(unknown)}; rows are {'; '.join(scores)}")


def differences(scores: Scores, against: str, rows: Sequence[str] = ()) -> Scores:
    """Differences of rows from another one, animal by animal; of all others where none is named."""
    check_rows([against, *rows], scores)
    other = scores[against]
    return {
        row: {trials: values - other[trials] for trials, values in scores[row].items()}
        for row in rows or [row for row in scores if row != against]
    }


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over files; the error of one file is NaN."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def table(scores: Scores, *, signed: bool = False) -> list[str]:
    """Rows in Markdown; bold where a signed mean is beyond two standard errors of 0."""
    trials = sorted({count for by_trials in scores.values() for count in by_trials})
    lines = [
        f"| training trials | {' | '.join(map(str, trials))} |",
        f"|---|{'---:|' * len(trials)}",
    ]
    for row, by_trials in scores.items():
        cells = []
        for count in trials:
            mean, error = mean_and_error(by_trials[count])
            cell = f"{mean:+.3f}" if signed else f"{mean:.3f}"
            if np.isfinite(error):
                cell += f" ± {error:.3f}"
            cells.append(f"**{cell}**" if signed and abs(mean) > 2 * error else cell)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def figure(
    metric: str, scores: Scores, compared: Sequence[tuple[str, Scores]], over: str = "animals"
) -> Figure:
    """Draw scores, and differences from rows, over the number of training trials.

    Args:
        metric: of the scores.
        scores: of the rows that are drawn.
        compared: the name of a row, and differences from it, for each further panel.
        over: what differs between the files.
    """
    drawn, axes = panel_figure(1 + len(compared), height=5.0)
    label = LABELS.get(metric, metric)
    order = [*dict.fromkeys([*scores, *(row for _, found in compared for row in found)])]
    draw_rows(axes[0], scores, order)
    axes[0].set(ylabel=label)
    for axis, (against, found) in zip(axes[1:], compared, strict=True):
        draw_rows(axis, found, order)
        axis.set(ylabel=textwrap.fill(f"difference from {against}", 30))
        axis.axhline(0, color="0.35", linewidth=0.8)
    files = len(next(iter(next(iter(scores.values())).values())))
    caption(drawn, f"mean and standard error over {files} {over}")
    return drawn


def draw_rows(axis: Axes, scores: Scores, order: Sequence[str]) -> None:
    """Draw a line for each row, whose colour and marker tell its place in ``order``."""
    for row, by_trials in scores.items():
        place = order.index(row)
        counts = np.array(sorted(by_trials))
        means, errors = np.array([mean_and_error(by_trials[count]) for count in counts]).T
        axis.errorbar(
            counts * 1.03 ** (place - (len(order) - 1) / 2), means, yerr=errors, capsize=4,
            label=row, color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
            linestyle=LINES[place // len(COLOURS) % len(LINES)], markersize=5, linewidth=1.5,
        )  # fmt: skip
    counts = sorted({count for by_trials in scores.values() for count in by_trials})
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set(xlabel="training trials")
    axis.grid(alpha=0.3)
    legend_below(axis)


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--compare", nargs="+", action="append", default=[])
    parser.add_argument("--mean", nargs="+", action="append", default=[])
    parser.add_argument("--draw", nargs="+", default=[], help="rows of the first panel; all")
    parser.add_argument("--over", default="animals")
    parser.add_argument("--tier", default="live_test_main")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    metric, scores = read(options.files, options.tier)
    scores = with_means(scores, options.mean)
    check_rows(options.draw, scores)
    compared = [(against, differences(scores, against, rows)) for against, *rows in options.compare]
    print(f"{LABELS.get(metric, metric)}, {options.tier}\n")
    print("\n".join(table(scores)))
    for against, found in compared:
        print(f"\ndifference from {against}, paired over {options.over}\n")
        print("\n".join(table(found, signed=True)))
    if options.out is not None:
        shown = {row: scores[row] for row in options.draw or scores}
        save(figure(metric, shown, compared, options.over), options.out)


if __name__ == "__main__":
    main()
