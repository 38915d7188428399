"""Attention of an encoder over a video, or of a model of neurons in a trial.

python -m ssl_vivit.evaluation.attention ENCODER VIDEO OUT.png
python -m ssl_vivit.evaluation.attention MODEL SESSION OUT.png OUT.gif --trial 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_vivit.command import OneLineParser
from ssl_vivit.encoders import ViViT, load_encoder
from ssl_vivit.errors import DataError, DecodingError, UserError
from ssl_vivit.evaluation.attention.figure import attention_over_frames
from ssl_vivit.evaluation.attention.trial import trial_attention
from ssl_vivit.evaluation.attention.trial_figure import animate_trial, draw_trial
from ssl_vivit.evaluation.attention.trial_video import video_of_file, video_of_trial
from ssl_vivit.evaluation.chosen_units import chosen_of
from ssl_vivit.evaluation.features.video_clip import numbered_clip
from ssl_vivit.exported.directory import is_kind
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.neural.prediction import MODEL_OF_NEURONS, NeuralPredictor

# Options that apply to only one kind of model.
_OF_ENCODERS = ("start", "heads")
_OF_NEURONS = ("session", "trial", "units")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the attention of an exported model and return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.columns < 1:
        parser.error(f"--columns is {args.columns}; it must be 1 or more")
    try:
        _check_files(args.out)
        places = (Path(args.model), Path(args.model) / "model")  # run/model
        if any(is_kind(place, MODEL_OF_NEURONS) for place in places):
            _refuse(args, _OF_ENCODERS, "an encoder", "a model of neurons")
            _draw_trial(load_neural_model(args.model), args)
        else:
            encoder = load_encoder(args.model)
            _refuse(args, _OF_NEURONS, "a model of neurons", "an encoder")
            _draw_clip(encoder, args)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    for path in args.out:
        print(f"attention  {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m ssl_vivit.evaluation.attention",
        description="Draw the attention of an exported encoder over the frames of a video, or the "
        "attention of a model of neurons to places and past frames of a trial.",
    )
    parser.add_argument(
        "model",
        help="directory of an exported encoder or model of neurons, or an encoder's name on the hub",
    )
    parser.add_argument(
        "video", help="a video file; for a model of neurons, a session's folder is possible too"
    )
    parser.add_argument(
        "out",
        type=Path,
        nargs="+",
        help="a PNG file; for a model of neurons a PNG file, a GIF file, or both",
    )
    parser.add_argument(
        "--columns",
        type=int,
        default=8,
        help="maximum number of time steps shown (default: %(default)s)",
    )
    encoders = parser.add_argument_group("encoders")
    encoders.add_argument(
        "--start",
        type=float,
        help="start of the clip in seconds (default: a clip from the middle of the video)",
    )
    encoders.add_argument("--heads", action="store_true", help="add a row for each attention head")
    neurons = parser.add_argument_group("models of neurons")
    neurons.add_argument(
        "--session", help="session of the neurons (needed if the model has several)"
    )
    neurons.add_argument(
        "--trial", type=int, help="number of the trial (default: first trial not trained on)"
    )
    neurons.add_argument(
        "--units", type=int, nargs="+", help="ids of the neurons that are averaged (default: all)"
    )
    return parser


def _check_files(files: Sequence[Path]) -> None:
    for path in files:
        if path.suffix.lower() not in (".png", ".gif") and not path.is_dir():
            raise DataError(f"{path} must end in .png or .gif")
        if path.is_dir():
            raise DataError(f"{path} is a directory; give the name of a PNG or GIF file")
    endings = [path.suffix.lower() for path in files]
    if len(set(endings)) < len(endings):
        raise DataError(f"{len(files)} output files; give one PNG file, one GIF file, or both")


def _refuse(args: argparse.Namespace, names: Sequence[str], whose: str, there: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, False):
            raise DataError(f"--{name} is for {whose}, but {args.model} is {there}; omit --{name}")


def _draw_clip(encoder: ViViT, args: argparse.Namespace) -> None:
    gifs = [path for path in args.out if path.suffix.lower() == ".gif"]
    if gifs:
        raise DataError(
            f"{gifs[0]}: an encoder's attention can only be drawn as PNG; give a PNG file"
        )
    try:
        video, numbers = numbered_clip(encoder, args.video, start=args.start)
    except DecodingError as error:
        raise DecodingError(f"{args.video}: {error}") from None
    attention_over_frames(
        encoder, video, args.out[0], heads=args.heads, columns=args.columns, numbers=numbers
    )


def _draw_trial(predictor: NeuralPredictor, args: argparse.Namespace) -> None:
    chosen = chosen_of(predictor, args.session, args.units)
    if Path(args.video).is_dir():
        video = video_of_trial(chosen, args.video, args.trial)
    elif args.trial is not None:
        raise DataError(
            f"--trial {args.trial} needs the folder of a session, but {args.video} is no folder"
        )
    else:
        try:
            video = video_of_file(args.video, chosen.facts)
        except DecodingError as error:
            raise DecodingError(f"{args.video}: {error}") from None
    found = trial_attention(chosen, video)
    encoder = predictor.model.encoder
    assert isinstance(encoder, ViViT)  # checked by trial_attention
    config, rate = encoder.config, chosen.facts.frames_per_second
    for path in args.out:
        if path.suffix.lower() == ".png":
            draw_trial(found, video, config, rate, path, columns=args.columns)
        else:
            animate_trial(found, video, config, rate, path)
