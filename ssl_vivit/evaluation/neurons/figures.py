"""Figures of a model of neurons: receptive fields, traces, bits per spike, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ssl_vivit.evaluation.figures import BLACK, BLUE, GREEN, ORANGE, draw_curves, new_figure, save
from ssl_vivit.evaluation.neurons.receptive_fields import position_correlation


def positions(
    found: Float[np.ndarray, "n 2"], true: Float[np.ndarray, "n 2"], path: Path, *, title: str
) -> None:
    """Found against true centres of receptive fields, x and y, in units of half a frame.

    Args:
        found: (x, y) of each neuron in [−1, 1].
        true: the same.
        path: of the PNG.
        title: whose positions.
    """
    figure = new_figure(7.6, 4.0)
    rs = position_correlation(found, true)
    for axis, name, column, r in zip(figure.subplots(1, 2), "xy", (0, 1), rs, strict=True):
        axis.plot([-1, 1], [-1, 1], color=BLACK, lw=0.8, ls="--", label="equal")
        axis.plot(true[:, column], found[:, column], "o", color=BLUE, ms=4, alpha=0.6, mew=0)
        axis.set(
            xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal",
            title=f"{name}: r = {r:.3f}, {len(true)} neurons",
            xlabel=f"true {name} (half frames from the centre)",
            ylabel=f"found {name} (half frames from the centre)",
        )  # fmt: skip
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def fields(
    names: Sequence[str],
    found: Float[np.ndarray, "n H W"],
    centres: Float[np.ndarray, "n 2"],
    path: Path,
    *,
    true: Float[np.ndarray, "n H W"] | None = None,
    true_centres: Float[np.ndarray, "n 2"] | None = None,
) -> None:
    """Found receptive fields and, below, the true ones; each scaled to its own largest value.

    A cross marks a found centre, a ring the true one.

    Args:
        names: of the neurons, a column each.
        found: receptive fields, signed.
        centres: found (x, y) in [−1, 1].
        path: of the PNG.
        true: receptive fields, signed, where they are known.
        true_centres: (x, y) in [−1, 1], where they are known.
    """
    rows = {"found (gradient)": found} | ({} if true is None else {"true filter": true})
    aspect = found.shape[1] / found.shape[2]
    figure = new_figure(2.1 * len(names) + 0.6, (2.1 * aspect + 0.45) * len(rows) + 0.3)
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=8)
        for column, (axis, image) in enumerate(zip(line, images, strict=True)):
            peak = float(np.abs(image).max()) or 1.0
            axis.imshow(
                image, cmap="PuOr", vmin=-peak, vmax=peak, extent=(-1, 1, 1, -1), aspect=aspect
            )
            axis.plot(*centres[column], "+", color=BLACK, ms=9, mew=1.2)
            if true_centres is not None:
                axis.plot(*true_centres[column], "o", mfc="none", mec=GREEN, ms=9, mew=1.4)
            axis.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(1, -1))
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8)
    marks = "+ found centre" + ("" if true_centres is None else ", green ring true centre")
    figure.suptitle(f"orange excites, purple suppresses; {marks}", fontsize=8)
    save(figure, path)


def traces(
    names: Sequence[str],
    recorded: Float[np.ndarray, "T n"],
    predicted: Float[np.ndarray, "T n"],
    path: Path,
    *,
    true: Float[np.ndarray, "T n"] | None = None,
    frames_per_second: float,
    kind: str = "spikes",
) -> None:
    """Recorded and predicted responses over time, a neuron a row.

    Args:
        names: of the neurons.
        recorded: responses in one trial, NaN where unknown.
        predicted: rates.
        path: of the PNG.
        true: true rates, where they are known.
        frames_per_second: of the session.
        kind: "spikes" are drawn as bars, "calcium" as a line.
    """
    figure = new_figure(9.0, 1.9 * len(names) + 0.6)
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    seconds = np.arange(len(recorded)) / frames_per_second
    unit = "spikes per frame" if kind == "spikes" else "response (ΔF/F)"
    for n, (axis, name) in enumerate(zip(axes, names, strict=True)):
        if kind == "spikes":
            axis.bar(seconds, recorded[:, n], 1 / frames_per_second, color="0.75", label="recorded")
            axis.locator_params(axis="y", nbins=4)
        else:
            axis.plot(seconds, recorded[:, n], color="0.45", lw=1.0, label="recorded")
        if true is not None:
            axis.plot(seconds, true[:, n], color=ORANGE, lw=1.2, ls="--", label="true rate")
        axis.plot(seconds, predicted[:, n], color=BLUE, lw=1.4, label="predicted")
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_ylabel(unit, fontsize=8)
        axis.margins(x=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", ncols=3)
    axes[-1].set_xlabel("time in the trial (s)")
    save(figure, path)


def histogram(
    scores: Mapping[str, Float[np.ndarray, " n"]],
    path: Path,
    *,
    label: str,
    ceiling: Mapping[str, Float[np.ndarray, " n"]] | None = None,
) -> None:
    """A score's distribution over neurons, a panel each, with what the true rates reach.

    Args:
        scores: title of a panel → score of each neuron; those that are not finite are left out.
        path: of the PNG.
        label: of the score, with its unit.
        ceiling: title of a panel → the same for the true rates, where they are known.
    """
    ceiling = ceiling or {}
    columns = min(3, len(scores))
    rows = -(-len(scores) // columns)
    figure = new_figure(5.2 * columns, 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (session, values) in zip(axes, scores.items(), strict=False):
        drawn = {"model": (values, BLUE, "-")}
        if session in ceiling:
            drawn["true rates"] = (ceiling[session], ORANGE, "--")
        finite = {name: v[np.isfinite(v)] for name, (v, _, _) in drawn.items()}
        together = np.concatenate(list(finite.values()))
        if not len(together):
            axis.set_axis_off()
            continue
        # A silent neuron's score can be anywhere; the bars are for the others.
        low, high = np.percentile(together, [1, 99])
        bins = np.linspace(low, high if high > low else low + 1, 31)
        for name, (_, colour, line) in drawn.items():
            mean = finite[name].mean() if len(finite[name]) else np.nan
            axis.hist(
                finite[name].clip(bins[0], bins[-1]), bins, color=colour, alpha=0.45,
                label=f"{name}, mean {mean:.3f}",
            )  # fmt: skip
            axis.axvline(mean, color=colour, ls=line, lw=1.6)
        axis.axvline(0, color=BLACK, lw=0.6)
        axis.set(title=session, xlabel=label, ylabel="neurons")
        axis.legend(fontsize=8)
    for axis in axes[len(scores) :]:
        axis.set_axis_off()
    save(figure, path)


def session_curves(
    metrics: Sequence[Mapping[str, float | None]],
    sessions: Sequence[str],
    path: Path,
    *,
    ceiling: Mapping[str, float] | None = None,
) -> None:
    """Loss over steps, and validation scores of each session.

    Args:
        metrics: lines of metrics.jsonl.
        sessions: names of the sessions.
        path: of the PNG.
        ceiling: session → bits per spike of the true rates, where they are known.
    """
    panels: dict[str, dict[str, str]] = {
        "Poisson loss (training)": {"train/poisson": "all sessions"},
        "bits per spike (validation)": {f"val/bps_{name}": name for name in sessions},
        "single-trial correlation (validation)": {
            f"val/correlation_{name}": name for name in sessions
        },
    }
    levels = {"bits per spike (validation)": ceiling} if ceiling else None
    draw_curves(metrics, panels, path, levels=levels, level_name="true rates")
