"""Convert a checkpoint of another program to an exported encoder.

python -m ssl_vivit.encoders.imports SOURCE OUT_DIR
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from ssl_vivit.command import OneLineParser
from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.imports.sources import Request, open_source
from ssl_vivit.encoders.vivit import ENCODER
from ssl_vivit.errors import MissingError
from ssl_vivit.exported.directory import check_place
from ssl_vivit.nested_text import read_json_text

_EPILOG = """
sources:
  checkpoint_30                a flax msgpack file of google-research/scenic
  vivit-b-16x2-kinetics400/    a directory of transformers (ViViT, VideoMAE), or its weights
  timm:vit_base_patch16_224    an image ViT of timm, downloaded if it is not in the cache
  vit.safetensors --timm-architecture vit_base_patch16_224
  backbone.pt --config '{"t": 32, "h": 64, "w": 64, "patch_t": 8, "patch_h": 4, "patch_w": 4, "heads": 10}'
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, which is 2 after an error line."""
    options = _parser().parse_args(arguments)
    out = Path(options.out_dir)
    # The hub's client would log each retry; the final error is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    try:
        check_place(out, ENCODER)
        request = Request(
            config=None if options.config is None else _settings(options.config, "--config"),
            video_shape=None if options.video_shape is None else tuple(options.video_shape),
            timm_architecture=options.timm_architecture,
            settings=dict(_setting(text) for text in options.set),
        )
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            # Parameters that the checkpoint lacks are random; a fixed seed keeps the output
            # reproducible.
            torch.manual_seed(0)
            model, made_of = open_source(options.source, request)
        _save(model, out, {"weights": made_of})
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    except (AttributeError, KeyError, TypeError) as error:
        if options.config is None and not options.set:
            raise
        # A value of the wrong type in the user's JSON can raise any of these errors.
        print(f"error: --config or --set has a value of the wrong type: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {_summary(model)}, from {made_of}")
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m ssl_vivit.encoders.imports",
        description="Convert a checkpoint of Scenic, transformers, timm or a ViViTBackbone to a "
        "directory for load_encoder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint; see below")
    parser.add_argument(
        "out_dir", metavar="OUT_DIR", help="directory to create, or an exported encoder to replace"
    )
    parser.add_argument(
        "--config",
        metavar="JSON",
        help="JSON file or JSON text with settings that the checkpoint lacks: the model part of a "
        "Scenic config, a config of transformers, or the arguments of ViViTBackbone",
    )
    parser.add_argument(
        "--video-shape",
        nargs=3,
        type=int,
        metavar=("T", "H", "W"),
        help="shape of a Scenic model's clips; for Model 2 read from the checkpoint by default",
    )
    parser.add_argument(
        "--timm-architecture",
        metavar="NAME",
        help="timm's name of the model whose weights the safetensors file contains",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of ViViTConfig for an image ViT, such as variant=joint or "
        "'image_size=[64, 96]'; may be repeated",
    )
    return parser


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text} must be NAME=VALUE")
    try:
        return name, read_json_text(value)
    except ValueError:
        return name, value


def _settings(text: str, option: str) -> dict[str, Any]:
    file = None if text.lstrip().startswith("{") else Path(text)
    if file is not None and not file.is_file():
        raise MissingError(f"{option} {text} is neither a file nor JSON text in braces")
    try:
        content = read_json_text(text if file is None else file.read_text())
    except ValueError as error:
        raise ValueError(f"{option} {text} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{option} must be a JSON object of settings, not {type(content).__name__}"
        )
    return content


def _save(model: VideoClassifier, out: Path, card: dict[str, Any]) -> None:
    if model.num_classes or model.representation is not None:
        model.save_pretrained(out, card=card)
    else:
        model.encoder.save_pretrained(out, card=card)


def _summary(model: VideoClassifier) -> str:
    config = model.encoder.config
    two = config.variant == "factorized_encoder"
    blocks = f"{config.spatial_depth} + {config.temporal_depth}" if two else f"{config.depth}"
    clip = "×".join(map(str, (config.in_channels, config.num_frames, *config.image_size)))
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{config.variant} of {blocks} blocks, width {config.embed_dim}, clips {clip}{classes}, "
        f"{count:,} parameters"
    )


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
