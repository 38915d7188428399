"""Pretrain an encoder on a folder of videos, and export it.

    python examples/pretrain_own_videos.py my_videos --out runs/my_videos

The script packs the videos into shards, trains a small ViViT by masked tubelets, and loads the
exported encoder. It prints the loss, the encoder's directory, and the shape of the features of the
longest video. Thirty steps take ten seconds of CPU time after packing and are only a demonstration.
To train a useful encoder, use thousands of videos and a preset of recipes/mae_clevrer.py.
"""

import argparse
from pathlib import Path

from data_prep.clevrer.packing import pack
from ssl_vivit import create_encoder, load_encoder, objectives, training
from ssl_vivit.data.video.augment import AugmentConfig
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.decoding import probe_video
from ssl_vivit.data.video.files_below import files_below
from ssl_vivit.data.video.loader import DataConfig, build_clips
from ssl_vivit.data.video.shards.index import is_video
from ssl_vivit.evaluation import encode_video

SIZE, FRAMES = (64, 64), 16  # pixels and frames of a clip


def main() -> None:
    """Pack the videos, pretrain and export an encoder, and load it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("videos", help="folder of videos, searched at any depth")
    parser.add_argument("--out", type=Path, default=Path("runs/my_videos"), help="new folder")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    if (args.out / "run").exists():
        parser.error(f"--out {args.out} contains a run; give a new folder")

    # All frames get one size: small, for quick decoding, but larger than the random crops.
    packed = pack(args.videos, args.out / "shards", prefix="mine", size=(96, 96))
    encoder = create_encoder(
        "vivit_tiny", image_size=SIZE, num_frames=FRAMES, tubelet_size=(2, 16, 16),
        embed_dim=96, num_heads=4, spatial_depth=2, temporal_depth=1,
        spatial_positions="rotary", temporal_positions="rotary",
    )  # fmt: skip
    # Clips of every second frame, without colour augmentation: their pixels are predicted.
    data = DataConfig(
        shards=[str(shard) for shard in packed.shards], held_out=0.0, workers=0,
        clip=ClipConfig(frame_stride=2, views=1), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
        augment=AugmentConfig(jitter_probability=0.0, blur_probability=0.0),
    )  # fmt: skip
    clips = build_clips(data, num_frames=FRAMES, size=SIZE).train
    objective = objectives.MaskedTubelets(
        encoder, mask_ratio=0.75, decoder_depth=1, decoder_positions="rotary",
        normalize_targets=False, preprocessing=clips.dataset.preprocessing,
    )  # fmt: skip
    config = training.TrainingConfig(
        run_dir=str(args.out / "run"), steps=args.steps, total_batch_size=min(8, len(clips)),
        checkpoint_every=args.steps, log_every=5, tracker="none",
        optimizer=training.OptimConfig(learning_rate=2e-3, scaling="none", warmup_steps=5),
    )  # fmt: skip
    result = training.fit(objective, clips, config, card={"data": args.videos})

    if result.encoder is None:  # a signal ended the run early
        return
    print(f"loss      {result.metrics['train/loss']:.4f} after {result.step} steps")
    print(f"encoder   {result.encoder}")
    folder = Path(args.videos)
    names = [n for n in files_below(folder)[0] if is_video(n) and n not in packed.skipped]
    video = max((folder / n for n in names), key=lambda path: probe_video(path).num_frames)
    features = encode_video(video, load_encoder(result.encoder)).pooled
    print(f"features  {tuple(features.shape)} of {video}")


if __name__ == "__main__":
    training.run(main)
