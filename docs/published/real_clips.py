"""Draw predictions of hidden tubelets of real clips by a finished run of masked tubelets.

python docs/published/real_clips.py RUN tests/assets/collision_clips/example_0_new.mp4 … --out FILE.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml

from ssl_vivit import load_encoder
from ssl_vivit.data.video.decoding import decode_frames, probe_video
from ssl_vivit.evaluation.features.video_clip import ClipCutting
from ssl_vivit.evaluation.monitors.pretraining_figures import reconstructions
from ssl_vivit.objectives import MaskedTubelets
from ssl_vivit.objectives.config import MaskedTubeletsConfig
from ssl_vivit.training.checkpoints.files import newest_whole, read_checkpoint


def trained(run: Path) -> MaskedTubelets:
    """Rebuild encoder and decoder of a run from its newest checkpoint."""
    encoder = load_encoder(run / "encoder")
    settings = yaml.safe_load((run / "config.yaml").read_text())["objective"]
    objective = MaskedTubelets(
        encoder, MaskedTubeletsConfig(**settings), preprocessing=encoder.preprocessing
    )
    checkpoint = newest_whole(run / "checkpoints", print)
    if checkpoint is None:
        raise SystemExit(f"{run / 'checkpoints'} has no complete checkpoint")
    objective.load_state_dict(read_checkpoint(checkpoint)[0].model)
    return objective.eval()


def main() -> None:
    """Read the central clip of each video, hide tubelets, draw what is predicted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    objective = trained(options.run)
    clips, numbers = [], []
    for path in options.videos:
        cutting = ClipCutting(objective.encoder, probe_video(path), str(path))
        (chosen,) = cutting.central()
        clips.append(cutting.prepared(decode_frames(str(path), chosen.tolist())))
        numbers.append(torch.as_tensor(chosen))
    torch.manual_seed(0)
    found = objective.reconstruct(torch.stack(clips))
    reconstructions(
        found, [path.stem for path in options.videos], torch.stack(numbers), options.out
    )


if __name__ == "__main__":
    main()
