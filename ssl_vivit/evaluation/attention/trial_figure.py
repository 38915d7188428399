"""Figure and animation of the attention of a model of neurons in a trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw

from ssl_vivit.encoders import ViViTConfig
from ssl_vivit.evaluation.attention.figure import map_extent
from ssl_vivit.evaluation.attention.trial import TrialAttention
from ssl_vivit.evaluation.figures import BLUE, PAGE_WIDTH, new_figure, save, save_gif

# The axes of past time show this fraction of the attention.
_REACH = 0.99
# Width of the animation and height of its bars, in pixels.
_WIDTH, _STRIP = 480, 56
_OPACITY = 0.55


def draw_trial(
    found: TrialAttention,
    video: Shaped[np.ndarray, "T H W"],
    config: ViViTConfig,
    frames_per_second: float,
    path: Path,
    *,
    columns: int = 6,
) -> None:
    """Draw the attention of readouts in a trial as a figure with three rows.

    The first row shows frames of the trial, the second row the attention over these frames, and the
    third row the attention to past time steps during the whole trial.

    Args:
        found: attention of the readouts in the trial.
        video: pixels from 0 to 255.
        config: config of the encoder.
        frames_per_second: frame rate of the trial.
        path: path of the PNG file.
        columns: maximum number of frames shown; they are evenly spaced, from the first frame in
            which a token is read.
    """
    from matplotlib.colors import PowerNorm

    first = int((found.read >= 0).argmax())
    shown = np.unique(np.linspace(first, len(video) - 1, columns).round().astype(int))
    height, width = video.shape[1:]
    cell = (PAGE_WIDTH - 0.9) / len(shown)
    figure = new_figure(PAGE_WIDTH, 2 * (cell * height / width + 0.3) + 2.9)
    rows = figure.add_gridspec(3, len(shown), height_ratios=[cell * height / width] * 2 + [2.2])
    shares = _relative_to_uniform(found.where)
    above = []
    for column, frame in enumerate(shown):
        for row in range(2):
            axis = figure.add_subplot(rows[row, column])
            axis.imshow(video[frame], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.autoscale(False)
            if row == 0:
                axis.set_title(f"{frame / frames_per_second:.2f} s", fontsize=9, loc="left", pad=3)
                continue
            above.append(axis)
            image = axis.imshow(
                shares[found.read[frame]],
                extent=map_extent(config, (height, width), *shares.shape[1:]),
                vmin=0,
                vmax=shares[found.read[shown]].max(),
                cmap="inferno",
                alpha=_OPACITY,
                interpolation="nearest",
            )
    above[0].set_title("where, × even share", fontsize=9, loc="left", pad=3)
    figure.colorbar(image, ax=above, pad=0.01, aspect=12).ax.tick_params(labelsize=8)
    lags = past_shares(found)
    axis = figure.add_subplot(rows[2, :])
    seconds = len(video) / frames_per_second
    reach = _reach(lags)
    step = seconds / len(found.where)
    image = axis.imshow(
        lags[:, : reach + 1].T,
        extent=(0, seconds, (reach + 0.5) * step, -0.5 * step),
        aspect="auto",
        cmap="inferno",
        # On a linear scale small values of the distant past would look black.
        norm=PowerNorm(0.5, vmin=0, vmax=_median_peak(lags)),
        interpolation="nearest",
    )
    axis.set_title("attention to past frames, by time before the frame", fontsize=9, loc="left")
    axis.set_xlabel("time in the trial (s)", fontsize=9)
    axis.set_ylabel("before (s)", fontsize=9)
    axis.tick_params(labelsize=8)
    figure.colorbar(image, ax=axis, pad=0.01, aspect=12).ax.tick_params(labelsize=8)
    save(figure, path)


def past_shares(found: TrialAttention) -> Float[np.ndarray, "S S"]:
    """Return the attention of each time step (rows) by the lag of the attended time step (columns).

    Column k holds the attention to the time step k steps earlier; lag 0 is the present. Attention
    to time steps before the start of the trial is 0.
    """
    steps = len(found.when)
    place = np.arange(steps)[:, None] - np.arange(steps)
    return np.where(place >= 0, found.when[np.arange(steps)[:, None], place], 0)


def animate_trial(
    found: TrialAttention,
    video: Shaped[np.ndarray, "T H W"],
    config: ViViTConfig,
    frames_per_second: float,
    path: Path,
) -> None:
    """Write a GIF of a trial at its frame rate, with the attention of readouts over each frame.

    Bars below a frame show the attention to past time steps, with the present at the right.
    :func:`~ssl_vivit.evaluation.figures.save_gif` limits the frame rate.

    Args:
        found: attention of the readouts in the trial.
        video: pixels from 0 to 255.
        config: config of the encoder.
        frames_per_second: frame rate of the trial.
        path: path of the GIF, written atomically.

    Raises:
        ValueError: if ``path`` is a directory.
    """
    shares, lags = _relative_to_uniform(found.where), past_shares(found)
    reach, top, brightest = _reach(lags), _median_peak(lags), float(shares.max())
    step = len(video) / frames_per_second / len(found.where)
    pictures = []
    for frame, pixels in enumerate(video):
        read = int(found.read[frame])
        over = None if read < 0 else shares[read] / brightest
        picture = Image.fromarray(_overlaid(pixels, over, config))
        scale = max(1, round(_WIDTH / picture.width))
        size = (picture.width * scale, picture.height * scale)
        canvas = Image.new("RGB", (size[0], size[1] + _STRIP), "white")
        canvas.paste(picture.resize(size, Image.Resampling.NEAREST))
        heights = np.zeros(reach + 1) if read < 0 else (lags[read, : reach + 1] / top).clip(0, 1)
        _draw_bars(canvas, size[1], heights, f"{frame / frames_per_second:.2f} s", reach * step)
        pictures.append(canvas.quantize(64))
    save_gif(pictures, frames_per_second, path)


def _overlaid(
    pixels: Shaped[np.ndarray, "H W"], shares: Float[np.ndarray, "h w"] | None, config: ViViTConfig
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a map with values from 0 to 1 over a frame; None draws no map."""
    from matplotlib import colormaps

    grey = np.repeat(np.asarray(pixels, float)[..., None] / 255, 3, 2)
    if shares is not None:
        height, width = grey.shape[:2]
        left, right, bottom, top = map_extent(config, (height, width), *shares.shape)
        # Index of the map's pixel at each pixel of the frame. Extents refer to pixel centres.
        row, column = (
            np.floor((np.arange(length) - low) / (high - low) * count).astype(int)
            for length, low, high, count in (
                (height, top, bottom, shares.shape[0]), (width, left, right, shares.shape[1])
            )
        )  # fmt: skip
        inside = ((row >= 0) & (row < len(shares)))[:, None] & (
            (column >= 0) & (column < shares.shape[1])
        )
        there = shares[row.clip(0, len(shares) - 1)][:, column.clip(0, shares.shape[1] - 1)]
        colours = colormaps["inferno"](there)[..., :3]
        mixed = _OPACITY * colours + (1 - _OPACITY) * grey
        grey = np.where(inside[..., None], mixed, grey)
    return (255 * grey.clip(0, 1)).round().astype(np.uint8)


def _draw_bars(
    canvas: Image.Image, top: int, heights: Float[np.ndarray, " k"], time: str, seconds: float
) -> None:
    """Draw attention to past time steps as bars below a frame, with the present at the right."""
    draw = ImageDraw.Draw(canvas)
    width, base, room = canvas.width, top + _STRIP - 16, _STRIP - 20
    each = width / len(heights)
    for back, share in enumerate(heights):
        right = width - back * each
        box = (right - each + 1, base - room * share, max(right - 1, right - each + 1), base)
        draw.rectangle(box, fill=BLUE)
    draw.text((2, base + 3), f"{-seconds:.2f} s", fill="black")
    draw.text((width // 2 - 20, base + 3), f"frame at {time}", fill="black")
    draw.text((width - 24, base + 3), "now", fill="black")


def _relative_to_uniform(where: Float[np.ndarray, "S h w"]) -> Float[np.ndarray, "S h w"]:
    """Convert attention to multiples of uniform attention over the positions of the token grid."""
    total = where.sum((1, 2), keepdims=True)
    places = where.shape[1] * where.shape[2]
    return where * places / np.where(total > 0, total, 1)


def _reach(lags: Float[np.ndarray, "S S"]) -> int:
    """Return the least k so that lags 0 to k hold 99 % of the mean attention over time steps."""
    mean = lags.mean(0)
    return int(np.searchsorted(np.cumsum(mean), _REACH * mean.sum()))


def _median_peak(lags: Float[np.ndarray, "S S"]) -> float:
    """Return the median, over time steps, of the largest attention of a time step to one lag.

    The median is robust to the first time steps, whose attention is concentrated on few lags.
    """
    return float(np.median(lags.max(1))) or 1.0
