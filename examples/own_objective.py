"""Train an encoder with your own objective in the project's loop: the direction of time.

    python examples/own_objective.py 'runs/my_videos/shards/*.tar' --out runs/arrow

Half of the clips are shown backwards, and the encoder predicts which (the arrow of time, Wei et al.
2018, CVPR). The loop adds mixed precision, several GPUs, checkpoints, resumption and logging. It
takes ten seconds of CPU time, and prints the accuracy on the last batch and the encoder's directory.
"""

import argparse
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from ssl_vivit import ViViT, create_encoder, training
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.loader import DataConfig, build_clips
from ssl_vivit.encoders import save_pretrained
from ssl_vivit.objectives import Objective, Step
from ssl_vivit.objectives.named_draws import names_of_views, uniform

SIZE, FRAMES = (64, 64), 16  # pixels and frames of a clip


class ArrowOfTime(Objective):
    """Objective that predicts whether a clip is shown backwards."""

    def __init__(self, encoder: ViViT, preprocessing: dict) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing
        self.head = nn.Linear(encoder.embed_dim, 1)

    def forward(self, batch: dict) -> Step:
        """Return cross entropy and accuracy of a batch of clips (b, views, C, T, H, W)."""
        video = batch["clips"].flatten(0, 1)  # draws depend only on names, also after a resume
        names = names_of_views(batch, "arrow")
        assert names is not None
        backwards = (uniform(names, 1).to(video.device)[:, 0] < 0.5).to(video)
        video = video.where(backwards[:, None, None, None, None] == 0, video.flip(2))
        logit = self.head(self.encoder(video, tokens=False).pooled)[:, 0]
        right = ((logit > 0) == (backwards > 0)).float().mean()
        return Step(F.binary_cross_entropy_with_logits(logit, backwards), {"accuracy": right})

    def export(self, directory: Path, *, training: dict) -> None:
        """Write the encoder, without the head."""
        card = {"objective": "arrow of time", **training}
        save_pretrained(self.encoder, directory, preprocessing=self.preprocessing, card=card)


def main() -> None:
    """Open the shards, build the objective, and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shards", help="pattern of shards, in quotes")
    parser.add_argument("--out", default="runs/arrow", help="new folder")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    clip = ClipConfig(frame_stride=2, views=1)
    data = DataConfig(shards=args.shards, held_out=0.0, clip=clip, workers=0)
    clips = build_clips(data, num_frames=FRAMES, size=SIZE).train
    encoder = create_encoder(
        "vivit_tiny", image_size=SIZE, num_frames=FRAMES, spatial_depth=2, temporal_depth=1
    )
    optim = training.OptimConfig(learning_rate=1e-3, scaling="none", warmup_steps=5)
    config = training.TrainingConfig(
        run_dir=args.out, steps=args.steps, total_batch_size=min(8, len(clips)), tracker="none",
        checkpoint_every=args.steps, log_every=5, optimizer=optim,
    )  # fmt: skip
    result = training.fit(ArrowOfTime(encoder, dict(clips.dataset.preprocessing)), clips, config)
    print(f"accuracy  {result.metrics['train/accuracy']:.2f} after {result.step} steps")
    print(f"encoder   {result.encoder}")


if __name__ == "__main__":
    training.run(main)
