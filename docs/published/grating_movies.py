"""Write movies of drifting gratings to pretrain on, each with a direction, frequencies and contrast drawn at random.

    python docs/published/grating_movies.py movies/gratings

The movies have the frame size and rate of the recorded session of results_on_neurons.md, whose own
gratings have eight directions and one pair of frequencies.
"""

import argparse
from pathlib import Path

import numpy as np
from einops import repeat
from tqdm import tqdm

from data_prep.clevrer.storage import encode_h264
from ssl_vivit.evaluation.tuning.gratings import Grating, Protocol
from ssl_vivit.files import replaced_file

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("out", type=Path)
parser.add_argument("--movies", type=int, default=1500)
parser.add_argument("--seed", type=int, default=401)
args = parser.parse_args()

protocol = Protocol(frame_size=(36, 64), frames_per_second=16.0, lead=0.0, seconds=3.0)
rng = np.random.default_rng(args.seed)
args.out.mkdir(parents=True)
for number in tqdm(range(args.movies), unit="movie"):
    grating = Grating(
        direction=rng.uniform(0, 360),
        spatial_frequency=2 ** rng.uniform(1, 3.5) / 64,
        temporal_frequency=2 ** rng.uniform(0, 2),
        contrast=rng.uniform(0.3, 1.0),
        # Its phase in the first frame.
        centre=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
    )
    frames = protocol.render(grating).round().clamp(0, 255).byte().numpy()
    with replaced_file(args.out / f"grating_{number:05d}.mp4") as part:
        part.write_bytes(encode_h264(repeat(frames, "t h w -> t h w c", c=3), 16.0))
