"""Show the results of `make demo`, from videos to neurons, in one table and one figure.

    python examples/demo_report.py runs/demo runs/demo_neurons runs/demo_neurons_fresh

The arguments are a run of recipes/simclr_clevrer.py, a run of recipes/finetune_neural.py with its
encoder, and a run of finetune_neural.py with random weights. The figure is written to the folder
figures of the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import SubFigure
from torch import Tensor

from recipes.finetune_neural import NeuralRecipe
from recipes.simclr_clevrer import SimCLRRecipe
from ssl_vivit import ViViT, load_encoder
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.video.loader import ClipBatches, build_clips
from ssl_vivit.evaluation.attention.maps import attention_maps
from ssl_vivit.evaluation.figures import PAGE_WIDTH, new_figure, pixels, save
from ssl_vivit.evaluation.monitors.contrastive import RETRIEVAL
from ssl_vivit.evaluation.monitors.retrieval import ViewFeatures, chance, collect, nearest_videos
from ssl_vivit.evaluation.neurons.receptive_fields import found_centres, true_fields
from ssl_vivit.evaluation.run_summary import first_and_last
from ssl_vivit.neural import load_neural_model
from ssl_vivit.training import parse

SAMPLE_SHARDS = "samples/clevrer/shards/sample-train-*.tar"
FIGURE = Path("figures") / "demo.png"
QUERIES, NEIGHBOURS, FRAMES = 4, 3, 4


class HeldOut(NamedTuple):
    """Held-out videos of the pretraining run.

    Attributes:
        found: pooled features, names and middle frames of one clip per video.
        clip: the clip with most motion, (1, C, T, H, W), normalised.
        mean, std: mean and standard deviation of each channel, used to normalise clips.
    """

    found: ViewFeatures
    clip: Float[Tensor, "1 c T H W"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def main() -> int:
    """Read the three runs, print the table, write the figure, and return the exit status."""
    parser = argparse.ArgumentParser(description="Table and figure of `make demo`.")
    parser.add_argument("pretraining", type=Path, help="run of recipes/simclr_clevrer.py")
    parser.add_argument("neurons", type=Path, help="run of recipes/finetune_neural.py")
    parser.add_argument("fresh", type=Path, help="run of finetune_neural.py with random weights")
    runs = parser.parse_args()
    for run, file in (
        (runs.pretraining, "encoder/config.json"), (runs.neurons, "scores.json"),
        (runs.fresh, "scores.json"),
    ):  # fmt: skip
        if not (run / file).is_file():
            print(f"error: {run / file} is missing; the run did not finish", file=sys.stderr)
            return 1
    if first_and_last(runs.pretraining, RETRIEVAL) is None:
        print(
            f"error: {runs.pretraining} has too few held-out videos; pack more videos",
            file=sys.stderr,
        )
        return 1
    encoder = load_encoder(runs.pretraining / "encoder")
    videos = held_out_videos(encoder, runs.pretraining)
    draw(encoder, videos, runs.neurons, runs.pretraining / FIGURE)
    print(table(runs.pretraining, runs.neurons, runs.fresh, len(videos.found.keys)))
    print(f"\nfigure  {runs.pretraining / FIGURE}\n\n{next_commands()}")
    return 0


def table(pretraining: Path, neurons: Path, fresh: Path, videos: int) -> str:
    """Return a table of retrieval and bits per spike, with fresh and with pretrained weights."""
    retrieval = first_and_last(pretraining, RETRIEVAL)
    assert retrieval is not None
    scores = [json.loads((run / "scores.json").read_text()) for run in (fresh, neurons)]
    # The simulated population has one tier of test trials.
    tiers = [next(iter(each["tiers"].values())) for each in scores]
    bits = [each["scores"]["bps_mean"] for each in tiers]
    lines = [
        ("", "fresh weights", "pretrained", ""),
        (
            "retrieval top-1 of the positive view",
            f"{retrieval[0]:.3f}",
            f"{retrieval[1]:.3f}",
            f"{chance(videos, 2):.3f} by chance, {videos} held-out videos",
        ),
        (
            "bits per spike, test trials",
            f"{bits[0]:.3f}",
            f"{bits[1]:.3f}",
            f"{tiers[0]['ceiling']['bps_mean']:.3f} with the true rates",
        ),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def next_commands() -> str:
    """Return suggested next commands, as they are typed in this environment."""
    found = shutil.which("python") == sys.executable
    python = "python" if found else os.path.relpath(sys.executable)
    return "\n".join(
        [
            "next commands",
            f"  {python} recipes/finetune_neural.py"
            "    # an encoder trained only on the sample's neurons",
            f"  {python} recipes/finetune_neural.py --sessions YOUR_SESSION"
            " --encoder runs/demo/encoder",
            f"  {python} recipes/simclr_clevrer.py"
            " --config simclr_vivit_small --data.shards 'YOUR_SHARDS/*.tar'",
        ]
    )


@torch.no_grad()
def held_out_videos(encoder: ViViT, run: Path) -> HeldOut:
    """Return one clip of each held-out video, with the encoder's features."""
    config = parse(SimCLRRecipe, ["--config", str(run / "config.yaml")])
    data = replace(config.data, shards=config.data.shards or SAMPLE_SHARDS)
    size = encoder.config
    clips = build_clips(
        data, num_frames=size.num_frames, size=size.image_size, in_channels=size.in_channels,
        seed=config.training.seed,
    )  # fmt: skip
    assert clips.held_out is not None
    dataset = clips.held_out.dataset
    chosen = clips.held_out.indices[: config.evaluation.videos]
    batches = ClipBatches(dataset, workers=0, shuffle=False, indices=chosen)
    found = collect(lambda batch: features(encoder, batch), batches.once(16, "cpu"))
    clips_of = (batch["clips"][:, 0] for batch in batches.once(1, "cpu"))
    # Choose the clip with most motion, so that attention has something to follow.
    moving = max(clips_of, key=lambda clip: float(clip.diff(dim=2).abs().mean()))
    augment = dataset.augment
    return HeldOut(found, moving, tuple(augment.mean), tuple(augment.std))


def features(encoder: ViViT, batch: dict[str, Tensor]) -> Float[Tensor, "b views d"]:
    """Return the pooled features, (b, views, d), of all clips of a batch."""
    clips = batch["clips"]
    return encoder(clips.flatten(0, 1), tokens=False).pooled.unflatten(0, clips.shape[:2])


def draw(encoder: ViViT, videos: HeldOut, neurons: Path, path: Path) -> None:
    """Draw three panels: nearest videos, attention, and estimated and true receptive fields."""
    figure = new_figure(PAGE_WIDTH, 8.8)
    (above,), (below,) = figure.subfigures(
        2, 1, squeeze=False, height_ratios=(1.05, 1), hspace=0.02
    )
    left, right = above.subfigures(1, 2, width_ratios=(1.55, 1), wspace=0.02)
    draw_neighbours(left, videos)
    draw_attention(right, encoder, videos)
    draw_fields(below, neurons)
    save(figure, path)


def draw_neighbours(panel: SubFigure, videos: HeldOut) -> None:
    """Draw held-out clips, and for each the other videos with the nearest pooled features.

    Each picture is labelled with the video's name and the number of the shown frame.
    """
    found = videos.found
    queries = torch.linspace(0, len(found.keys) - 1, QUERIES).long()
    nearest, _ = nearest_videos(found.features[:, 0], queries, NEIGHBOURS)
    images = pixels(found.middle_frames[:, 0], videos.mean, videos.std)
    panel.suptitle("Pretrained encoder: nearest held-out videos (name, frame)", fontsize=10)
    axes = panel.subplots(QUERIES, 1 + NEIGHBOURS, squeeze=False)
    for row, query in enumerate(queries.tolist()):
        for column, video in enumerate([query, *nearest[row].tolist()]):
            axis = axes[row][column]
            axis.imshow(images[video].numpy())
            axis.set(xticks=[], yticks=[])
            head = ("query\n" if column == 0 else f"nearest {column}\n") if row == 0 else ""
            number = int(found.frame_numbers[video, 0])
            axis.set_title(f"{head}{found.keys[video]}, {number}", fontsize=8, pad=3)


@torch.no_grad()
def draw_attention(panel: SubFigure, encoder: ViViT, videos: HeldOut) -> None:
    """Draw frames of a held-out clip, and the attention of the pooled vector to each tubelet.

    Frame numbers count frames of the clip.
    """
    shares = attention_maps(encoder, videos.clip).rollout()[0]
    size, (steps, height, width) = videos.clip.shape[-2:], shares.shape
    shares = shares * (steps * height * width / shares.sum())
    smooth = F.interpolate(shares[:, None], size=size, mode="bilinear")[:, 0]
    frames = pixels(videos.clip[0].movedim(1, 0), videos.mean, videos.std)
    panel.suptitle("Its attention (rollout, × uniform attention)", fontsize=10)
    axes = panel.subplots(FRAMES, 2, squeeze=False)
    times = torch.linspace(0, steps - 1, FRAMES).round().long().tolist()
    for line, time in zip(axes, times, strict=True):
        number = (2 * time + 1) * len(frames) // (2 * steps)
        frame = frames[number]
        line[0].set_ylabel(f"frame {number}", fontsize=9)
        grey = frame.mean(-1, keepdim=True).expand_as(frame)
        line[0].imshow(frame.numpy())
        line[1].imshow(grey.numpy())
        image = line[1].imshow(
            smooth[time].numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=float(smooth.max())
        )
        for axis in line:
            axis.set(xticks=[], yticks=[])
    panel.colorbar(image, ax=axes[:, 1].tolist(), pad=0.02, aspect=30).ax.tick_params(labelsize=8)


def draw_fields(panel: SubFigure, run: Path) -> None:
    """Draw the estimated and the true centre of each neuron's receptive field on the screen."""
    model = load_neural_model(run / "model").model
    sessions = parse(NeuralRecipe, ["--config", str(run / "config.yaml")]).data.sessions
    assert sessions is not None
    session = Session(sessions if isinstance(sessions, str) else sessions[0])
    truth = true_fields(session)
    found = found_centres(model, session.name, session.frame_size)
    assert truth is not None
    assert found is not None
    true, axis = truth["center"], panel.subplots()
    stimulus = session.video(int(session.tiers["test"][0]))
    axis.imshow(stimulus[len(stimulus) // 2], cmap="gray", extent=(-1, 1, 1, -1), alpha=0.25)
    for one, other in zip(true, found, strict=True):
        axis.plot((one[0], other[0]), (one[1], other[1]), color="0.2", linewidth=0.6)
    axis.scatter(
        true[:, 0], true[:, 1], s=34, facecolors="none", edgecolors="#0072B2", label="true"
    )
    axis.scatter(found[:, 0], found[:, 1], s=9, color="#D55E00", label="found by the readout")
    height, width = session.frame_size
    axis.set(xlim=(-1, 1), ylim=(1, -1), aspect=height / width)
    axis.set_xlabel("x (half frames from the centre)", fontsize=9)
    axis.set_ylabel("y (half frames from the centre)", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    panel.suptitle(f"Neurons: {len(true)} receptive fields on the screen", fontsize=10)


if __name__ == "__main__":
    sys.exit(main())
