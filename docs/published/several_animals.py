"""Print and draw comparisons of models of neurons over several animals.

python docs/published/several_animals.py --against "vivit" --out FIGURE.png ANIMAL/comparison.json …

Each file is of one animal, by ``recipes/compare_neural.py --trials``. Seeds of an animal are averaged
first; means and standard errors are over animals. Differences from the row that ``--against`` names
are paired animal by animal.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ssl_vivit.evaluation.figures import COLOURS, caption, legend_below, panel_figure, save
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


def differences(scores: Scores, against: str) -> Scores:
    """Differences of each row from another one, animal by animal."""
    other = scores[against]
    return {
        row: {trials: values - other[trials] for trials, values in by_trials.items()}
        for row, by_trials in scores.items()
        if row != against
    }


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over animals."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def table(scores: Scores, names: Mapping[str, str], *, signed: bool = False) -> list[str]:
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
            cell = f"{mean:+.3f} ± {error:.3f}" if signed else f"{mean:.3f} ± {error:.3f}"
            cells.append(f"**{cell}**" if signed and abs(mean) > 2 * error else cell)
        lines.append(f"| {names.get(row, row)} | {' | '.join(cells)} |")
    return lines


def figure(metric: str, scores: Scores, against: str, names: Mapping[str, str]) -> Figure:
    """Scores, and differences from one row, over the number of training trials."""
    drawn, (left, right) = panel_figure(2, height=4.4)
    for axis, shown in ((left, scores), (right, differences(scores, against))):
        for row, by_trials in shown.items():
            place = list(scores).index(row)
            counts = np.array(sorted(by_trials))
            means, errors = np.array([mean_and_error(by_trials[count]) for count in counts]).T
            axis.errorbar(
                counts * 1.03 ** (place - (len(scores) - 1) / 2), means, yerr=errors, capsize=4,
                label=names.get(row, row), color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)], markersize=5, linewidth=1.5,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set(xlabel="training trials")
        axis.grid(alpha=0.3)
    label = LABELS.get(metric, metric)
    left.set(ylabel=label)
    right.set(ylabel=f"difference from {names.get(against, against)}")
    right.axhline(0, color="0.35", linewidth=0.8)
    legend_below(left)
    animals = len(next(iter(next(iter(scores.values())).values())))
    caption(drawn, f"mean and standard error over {animals} animals")
    return drawn


def main() -> None:
    """Print both tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--against", required=True)
    parser.add_argument("--tier", default="live_test_main")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    metric, scores = read(options.files, options.tier)
    if options.against not in scores:
        raise SystemExit(f"--against {options.against}: rows are {', '.join(scores)}")
    print(f"{LABELS.get(metric, metric)}, {options.tier}\n")
    print("\n".join(table(scores, {})))
    print(f"\ndifference from {options.against}, paired over animals\n")
    print("\n".join(table(differences(scores, options.against), {}, signed=True)))
    if options.out is not None:
        save(figure(metric, scores, options.against, {}), options.out)


if __name__ == "__main__":
    main()
