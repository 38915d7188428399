"""Encode a video with trained weights, and draw the encoder's attention.

    python examples/encode_and_attend.py video.mp4 --out attention.png

By default the encoder is one from the folder weights/; --encoder chooses another. The script prints
the shapes of the features, the similarity of the video's clips, and the name of the figure. It
takes seconds on a CPU. The notebook examples/encode_and_attend.ipynb does this step by step.
"""

import argparse
import sys
from pathlib import Path

import torch.nn.functional as F

from ssl_vivit import load_encoder
from ssl_vivit.errors import UserError
from ssl_vivit.evaluation import encode_video
from ssl_vivit.evaluation.attention.figure import attention_over_frames
from ssl_vivit.evaluation.features.video_clip import clip_of_video

WEIGHTS = Path(__file__).parents[1] / "weights" / "mae_model3"


def main() -> None:
    """Load the encoder, encode the video, and draw attention."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", help="a video file")
    parser.add_argument(
        "--encoder", default=str(WEIGHTS), help="an exported encoder, or its name on the hub"
    )
    parser.add_argument("--out", type=Path, default=Path("attention.png"), help="a PNG file")
    args = parser.parse_args()

    encoder = load_encoder(args.encoder)  # in eval mode
    middle = encode_video(args.video, encoder)  # the clip in the middle of the video
    assert middle.tokens is not None  # None only with tokens=False
    print(f"pooled   {tuple(middle.pooled.shape)}: one vector for the clip")
    print(f"tokens   {tuple(middle.tokens.shape)}: one for each tubelet, grid {middle.grid}")

    every = encode_video(args.video, encoder, clips="all", tokens=False).pooled
    alike = F.cosine_similarity(every, middle.pooled)
    print(
        f"clips    {len(every)}, cosine to the middle one from {alike.min():.3f} to "
        f"{alike.max():.3f}"
    )

    clip = clip_of_video(encoder, args.video)  # cropped, resized and normalised as in encode_video
    attention_over_frames(encoder, clip, args.out)
    print(f"figure   {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
