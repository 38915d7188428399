"""Figures of a model of neurons: receptive fields, traces, bits per spike, learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ssl_vivit.evaluation.figures import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    caption,
    draw_curves,
    legend_below,
    new_figure,
    panel_figure,
    save,
)
from ssl_vivit.evaluation.neurons.receptive_fields import position_correlation

MARKERS = "os^D"


def positions(
    found: Float[np.ndarray, "n 2"], true: Float[np.ndarray, "n 2"], path: Path, *, title: str
) -> None:
    """Draw receptive-field centres of a model against true centres, with a panel each for x and y.

    Args:
        found: centres in the model, (x, y) of each neuron in [−1, 1].
        true: true centres, (x, y) of each neuron in [−1, 1].
        path: path of the PNG file.
        title: title of the figure.
    """
    figure = new_figure(7.6, 4.4)
    rs = position_correlation(found, true)
    axes = figure.subplots(1, 2)
    for axis, name, column, r in zip(axes, "xy", (0, 1), rs, strict=True):
        axis.plot([-1, 1], [-1, 1], color=BLACK, lw=0.8, ls="--", label="equal")
        axis.plot(true[:, column], found[:, column], "o", color=BLUE, ms=4, alpha=0.6, mew=0,
                  label="a neuron")  # fmt: skip
        axis.set(
            xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal",
            title=f"{name}: r = {r:.3f}, {len(true)} neurons",
            xlabel=f"true {name} (half frames from the centre)",
            ylabel=f"found {name} (half frames from the centre)",
        )  # fmt: skip
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  fontsize=9, frameon=False)  # fmt: skip
    caption(figure, title)
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
    """Draw receptive fields of neurons in a model, with the true fields below if they are known.

    Each field is scaled to its largest absolute value. There are three neurons per row. A cross
    marks the centre in the model, and a ring the true centre.

    Args:
        names: labels of the neurons.
        found: signed receptive fields of the model, (n, H, W).
        centres: centres of these receptive fields, (x, y) in [−1, 1].
        path: path of the PNG file.
        true: signed true receptive fields (n, H, W), or None if unknown.
        true_centres: true centres, (x, y) in [−1, 1], or None if unknown.
    """
    rows = {"found (gradient)": found} | ({} if true is None else {"true filter": true})
    aspect = found.shape[1] / found.shape[2]
    columns = min(3, len(names))
    blocks = -(-len(names) // columns)
    cell = (PAGE_WIDTH - 0.3) / 3
    height = ((cell * aspect + 0.1) * len(rows) + 0.4) * blocks + 0.5
    figure = new_figure(cell * columns + 0.3, height)
    axes = figure.subplots(blocks * len(rows), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for place, name in enumerate(names):
        block, column = divmod(place, columns)
        axes[block * len(rows), column].set_title(name, fontsize=9)
        for row, (label, images) in enumerate(rows.items()):
            axis, image = axes[block * len(rows) + row, column], images[place]
            peak = float(np.abs(image).max()) or 1.0
            axis.imshow(
                image, cmap="PuOr", vmin=-peak, vmax=peak, extent=(-1, 1, 1, -1), aspect=aspect
            )
            axis.plot(*centres[place], "+", color=BLACK, ms=9, mew=1.2)
            if true_centres is not None:
                axis.plot(*true_centres[place], "o", mfc="none", mec=GREEN, ms=9, mew=1.4)
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(1, -1))
            if column == 0:
                axis.set_ylabel(label, fontsize=9)
    marks = "+ found centre" + ("" if true_centres is None else ", green ring true centre")
    caption(figure, f"orange excites, purple suppresses; {marks}")
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
    """Draw recorded and predicted responses over time, with one panel per neuron.

    Args:
        names: labels of the neurons.
        recorded: responses (T, n) in one trial; NaN where unknown.
        predicted: predicted rates (T, n).
        path: path of the PNG file.
        true: true rates (T, n), or None if unknown.
        frames_per_second: frame rate of the session.
        kind: "spikes" are drawn as bars, "calcium" as a line.
    """
    figure = new_figure(PAGE_WIDTH, 1.9 * len(names) + 0.6)
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
        axis.set_ylabel(unit, fontsize=9)
        axis.margins(x=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="outside upper right", ncols=3)
    axes[-1].set_xlabel("time in the trial (s)")
    save(figure, path)


def histogram(
    scores: Mapping[str, Float[np.ndarray, " n"]],
    path: Path,
    *,
    label: str,
    zero: str,
    ceiling: Mapping[str, Float[np.ndarray, " n"]] | None = None,
) -> None:
    """Draw histograms of a score over neurons, with the scores of the true rates.

    Args:
        scores: title of a panel → scores of the neurons; values that are not finite are left out.
        path: path of the PNG file.
        label: label of the score, with its unit.
        zero: description of a prediction with the score 0, such as "chance", for the legend.
        ceiling: title of a panel → scores of the true rates, an upper limit for models. Panels of
            recorded sessions are left out, since their true rates are unknown.
    """
    ceiling = ceiling or {}
    figure, panels = panel_figure(len(scores), height=4.0)
    for axis, (session, values) in zip(panels, scores.items(), strict=True):
        drawn = {"model": (values, BLUE, "-")}
        if session in ceiling:
            drawn["true rates"] = (ceiling[session], ORANGE, "--")
        finite = {name: v[np.isfinite(v)] for name, (v, _, _) in drawn.items()}
        together = np.concatenate(list(finite.values()))
        if not len(together):
            axis.set_axis_off()
            continue
        # The axis is limited to percentiles, because scores of silent neurons can be arbitrarily
        # large or small.
        low, high = np.percentile(together, [1, 99])
        bins = np.linspace(low, high if high > low else low + 1, 31)
        for name, (_, colour, line) in drawn.items():
            mean = finite[name].mean() if len(finite[name]) else np.nan
            axis.hist(finite[name].clip(low, bins[-1]), bins.tolist(), color=colour, alpha=0.45)
            axis.axvline(mean, color=colour, ls=line, lw=1.6, label=f"{name}, mean {mean:.3f}")
        axis.axvline(0, color=BLACK, lw=0.8, ls=":", label=f"0: {zero}")
        axis.set_title(textwrap.fill(session, 45), fontsize=10)
        axis.set(xlabel=label, ylabel="neurons")
        axis.locator_params(axis="y", integer=True)
        legend_below(axis)
    caption(figure, "the outermost bars include all values beyond them")
    save(figure, path)


def paired_scores(
    panels: Mapping[str, Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]],
    path: Path,
    *,
    names: tuple[str, str],
    title: str,
) -> None:
    """Draw the scores of each neuron by two models, with one panel for each score.

    Neurons above the dashed line are predicted better by the first model.

    Args:
        panels: title of a panel → session → scores of the second model (horizontal axis) and of the
            first model (vertical axis). Values that are not finite are left out.
        path: path of the PNG file.
        names: names of the first and the second model.
        title: title of the figure.
    """
    figure, axes = panel_figure(len(panels), height=4.6)
    for axis, (told, sessions) in zip(axes, panels.items(), strict=True):
        pairs = {name: np.stack(pair) for name, pair in sessions.items()}
        pairs = {name: pair[:, np.isfinite(pair).all(0)] for name, pair in pairs.items()}
        together = np.concatenate([*pairs.values()], 1)
        low, high = float(together.min()), float(together.max())
        margin = 0.05 * (high - low or 1.0)
        ends = (low - margin, high + margin)
        axis.plot(ends, ends, color=BLACK, lw=0.8, ls="--", label="equal")
        for place, (name, (second, first)) in enumerate(pairs.items()):
            # Colours repeat after six sessions, with a different marker.
            marker = MARKERS[place // len(COLOURS) % len(MARKERS)]
            label = textwrap.shorten(name, 22, placeholder="…") if len(pairs) <= 12 else None
            axis.plot(second, first, marker, color=COLOURS[place % len(COLOURS)], ms=4, alpha=0.6,
                      mew=0, label=label)  # fmt: skip
        axis.set(
            xlim=ends, ylim=ends, aspect="equal", xlabel=textwrap.fill(names[1], 26),
            ylabel=textwrap.fill(names[0], 26),
        )  # fmt: skip
        lines = [textwrap.fill(line, 42) for line in told.splitlines()]
        axis.set_title("\n".join(lines), fontsize=10)
        axis.locator_params(nbins=6)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=9, frameon=False)  # fmt: skip
    caption(figure, f"{title}: a point is a neuron")
    save(figure, path)


def session_curves(
    metrics: Sequence[Mapping[str, float | None]],
    sessions: Sequence[str],
    path: Path,
    *,
    ceiling: Mapping[str, float] | None = None,
) -> None:
    """Draw the training loss and the validation scores of each session over steps.

    Args:
        metrics: lines of metrics.jsonl.
        sessions: names of the sessions.
        path: path of the PNG file.
        ceiling: session → bits per spike of the true rates, for sessions with known rates.
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
