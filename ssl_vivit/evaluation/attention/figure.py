"""Figure of an encoder's attention over the frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.encoders import ViViT, ViViTConfig
from ssl_vivit.evaluation.attention.maps import AttentionMaps, attention_maps
from ssl_vivit.evaluation.figures import PAGE_WIDTH, new_figure, pixels, save
from ssl_vivit.preprocessing import Preprocessing


def attention_over_frames(
    encoder: ViViT,
    video: Float[Tensor, "1 c T H W"],
    path: Path,
    *,
    heads: bool = False,
    columns: int = 8,
    numbers: Sequence[int] | None = None,
) -> None:
    """Draw attention over the frames of a clip, with one column per time step.

    A column shows the middle frame of the time step's tubelets. The first row shows the frames, the
    second the attention rollout to the pooled vector, and the third the attention of the class
    token in the last layer with spatial attention. Without a class token, the third row shows the
    mean attention that patches receive from the patches of their frame. Values are multiples of
    uniform attention, which gives every tubelet 1.

    Args:
        encoder: the encoder; pixels are restored with the statistics of its ``preprocessing``.
        video: one clip, normalised.
        path: the PNG file, written atomically.
        heads: whether to add a row for each head of the last layer with spatial attention.
        columns: maximum number of time steps shown; they are evenly spaced over the clip.
        numbers: the number of each frame in the source video; None counts from 0.
    """
    known = encoder.preprocessing or Preprocessing()
    mean, std = known.statistics(encoder.config.in_channels)
    maps = attention_maps(encoder, video)
    times = torch.linspace(0, maps.grid.t - 1, min(columns, maps.grid.t)).round().long().tolist()
    frames = pixels(video[0].movedim(1, 0), mean, std)
    rows = {"frames": None, **_rows(maps, heads)}
    height, width = frames.shape[1:3]
    cell = min(2.4, (PAGE_WIDTH - 0.6) / len(times))
    figure = new_figure(cell * len(times) + 0.6, (cell * height / width + 0.3) * len(rows))
    axes = figure.subplots(len(rows), len(times), squeeze=False)
    for line, (title, shares) in zip(axes, rows.items(), strict=True):
        for axis, time in zip(line, times, strict=True):
            number = frame_of_step(encoder.config, video.shape[2], time)
            axis.imshow(frames[number].numpy())
            axis.set(xticks=[], yticks=[])
            axis.autoscale(False)
            if shares is None:
                axis.set_title(
                    f"frame {number if numbers is None else numbers[number]}",
                    fontsize=9,
                    loc="left",
                    pad=3,
                )
                continue
            image = axis.imshow(
                shares[time].cpu().numpy(),
                extent=map_extent(encoder.config, (height, width), *shares.shape[1:]),
                vmin=0,
                vmax=shares.max().item(),
                cmap="inferno",
                alpha=0.55,
                interpolation="nearest",
            )
        if shares is not None:
            line[0].set_title(f"{title}, × even share", fontsize=9, loc="left", pad=3)
            bar = figure.colorbar(image, ax=list(line), pad=0.01, aspect=12)
            bar.ax.tick_params(labelsize=8)
    save(figure, path)


def _rows(maps: AttentionMaps, heads: bool) -> dict[str, Float[Tensor, "t h w"]]:
    """Return the title of each row of the figure → attention map, as multiples of uniform attention.

    If there are several clips, the maps are those of the first.
    """
    config, (t, h, w) = maps.config, maps.grid
    rollout = maps.rollout()[0]
    last = (config.spatial_depth or config.depth or 1) - 1
    if config.class_token:
        name, shares = "class token", maps.class_attention(last)[0]
    else:
        received = maps.within_frames(last)[0].mean(-2)
        name, shares = "patches", received.unflatten(-1, (h, w))
    # The class token attends to all frames in Model 1 and to one frame in the other models.
    even = t * h * w if config.variant == "joint" and config.class_token else h * w
    rows = {
        "rollout": rollout * (t * h * w / rollout.sum()),
        f"{name}, layer {last}": shares.mean(1) * even,
    }
    if heads:
        rows |= {f"head {i}": shares[:, i] * even for i in range(shares.shape[1])}
    return rows


def frame_of_step(config: ViViTConfig, frames: int, step: int) -> int:
    """Return the index of a time step's middle frame in a clip of ``frames`` frames."""
    if config.tubelet_embedding == "uniform_frames":
        return config.frames_of(frames)[step]
    size, stride = config.tubelet_size[0], config.kernel_stride[0]
    (padding, _), *_ = config.padding_of(frames, *config.image_size)
    return max(step * stride - padding + size // 2, 0)


def map_extent(
    config: ViViTConfig, frame_size: tuple[int, int], rows: int, columns: int
) -> tuple[float, float, float, float]:
    """Return the extent of a map on the frame in pixels: left, right, bottom, top.

    Each token is drawn one stride wide around the centre of its tubelet, so that tokens of
    overlapping tubelets do not cover each other. Pixels outside all tubelets stay uncovered.
    """
    (_, height, width), (_, down, across) = config.tubelet_size, config.kernel_stride
    _, (above, _), (beside, _) = config.padding_of(config.num_frames, *frame_size)
    left, top = (width - across) / 2 - 0.5 - beside, (height - down) / 2 - 0.5 - above
    return left, left + columns * across, top + rows * down, top
