"""Encoders as graphs for other runtimes: torch.export and ONNX.

python -m ssl_vivit.encoders.onnx EXPORTED_DIR OUT.onnx

The graph of an encoder returns ``pooled`` and ``tokens``, that of a :class:`VideoClassifier`
``logits``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.command import OneLineParser
from ssl_vivit.encoders.classifier import VideoClassifier, load_encoder_or_classifier
from ssl_vivit.encoders.vivit import ViViT
from ssl_vivit.evaluation_mode import evaluation_mode
from ssl_vivit.files import temporary_beside

# The oldest opset that torch's exporter writes without a conversion, which may fail.
OLDEST_OPSET = 18
# Of the largest number in an output; float32 rounding through the deepest encoders stays below.
TOLERANCE = 1e-4


class TensorEncoder(nn.Module):
    """Video → (pooled, tokens), tensors alone, as graphs need them.

    Args:
        encoder: the encoder.
    """

    def __init__(self, encoder: ViViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, video: Float[Tensor, "b c T H W"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b t n d"]]:
        """The pooled vector (b, d) and the tokens (b, t, n, d) of each clip."""
        out = self.encoder(video)
        assert out.tokens is not None
        return out.pooled, out.tokens


class _Tensors(NamedTuple):
    """A model as a function from a tensor to tensors.

    Attributes:
        module: video (B, C, T, H, W) → a tensor or several.
        names: of its outputs.
        encoder: the encoder inside.
    """

    module: nn.Module
    names: list[str]
    encoder: ViViT

    def __call__(self, video: Float[Tensor, "b c T H W"]) -> list[Tensor]:
        with evaluation_mode(self.module), torch.no_grad():
            out = self.module(video)
        return [out] if isinstance(out, Tensor) else list(out)


def _tensors(model: ViViT | VideoClassifier) -> _Tensors:
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if isinstance(model, VideoClassifier):
        return _Tensors(model, ["logits" if model.num_classes else "features"], model.encoder)
    if isinstance(model, ViViT):
        return _Tensors(TensorEncoder(model), ["pooled", "tokens"], model)
    raise TypeError(
        f"a {type(model).__name__} cannot be exported as a graph; give a ViViT or a VideoClassifier"
    )


def export_graph(
    model: ViViT | VideoClassifier, *, dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """The model in eval mode as a program of torch.export.

    Clips have the configured size; :func:`ssl_vivit.encoders.adapt.adapt` makes an encoder of
    another one. The program holds the model's own weights, not copies.

    Args:
        model: the encoder or classifier, left in the mode that it is in.
        dynamic_batch: leave the number of clips open; False fixes it at one.

    Returns:
        A program whose ``module()`` takes video (B, C, T, H, W). That of an encoder returns pooled
        (B, d) and tokens (B, t, n, d); that of a classifier logits (B, classes), or the features
        before the head where it has no classes.

    Raises:
        TypeError: for a model of another class.
    """
    tensors = _tensors(model)
    shapes = {"video": {0: torch.export.Dim("batch", min=1)} if dynamic_batch else {}}
    # A batch of one would be taken for a constant.
    video = _clip(tensors.encoder, 2 if dynamic_batch else 1)
    with evaluation_mode(tensors.module), torch.no_grad():
        return torch.export.export(tensors.module, (video,), dynamic_shapes=shapes)


def export_onnx(
    model: ViViT | VideoClassifier,
    path: str | Path,
    *,
    opset: int | None = None,
    external_data: bool | None = None,
    check: bool = True,
) -> None:
    """Write the model as an ONNX graph, for any number of clips of the configured size.

    The input is ``video`` (batch, C, T, H, W), normalised as the encoder's ``preprocessing`` says.
    The outputs of an encoder are ``pooled`` (batch, d) and ``tokens`` (batch, t, n, d), that of a
    classifier is ``logits`` (batch, classes), or ``features`` where it has no classes. The graph's
    metadata hold ``config`` and ``preprocessing`` of the encoder as JSON. The file appears whole or
    not at all, an older one of that name is replaced.

    Args:
        model: the encoder or classifier, in float32.
        path: the file; parents are made.
        opset: version of ONNX's operators; None is the exporter's choice.
        external_data: put the weights in a second file, ``path`` and ``.data``; None does so where
            a single one would reach the format's limit of 2 GB.
        check: run the graph with onnxruntime for one and for three clips, and compare.

    Raises:
        ImportError: if ONNX's packages are missing; names the extra that brings them.
        TypeError: for a model of another class.
        ValueError: for weights of another type, or an opset that cannot be written.
        RuntimeError: if ``check`` finds other numbers than the model's. Nothing is written then.
    """
    tensors = _tensors(model)
    path = Path(path)
    _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    _check_request(tensors.module, path, opset)
    program = torch.onnx.export(
        export_graph(model),
        dynamo=True,
        opset_version=opset,
        input_names=["video"],
        output_names=tensors.names,
        dynamic_shapes={"video": {0: "batch"}},
        verbose=False,
    )
    assert program is not None
    written = program.model.opset_imports[""]
    if opset not in (None, written):
        raise ValueError(f"opset {opset} cannot be written by torch {torch.__version__}; use lower")
    _describe(program.model, tensors.encoder)
    with temporary_beside(path) as new:
        new.mkdir()
        # External data are found by their name beside the graph, so the names are the final ones.
        program.save(new / path.name, external_data=external_data)
        if check:
            _check(new / path.name, tensors)
        if any(new.glob("*.data")):
            # An old graph must not be left beside new weights, should the next lines be cut off.
            path.unlink(missing_ok=True)
        for file in sorted(new.iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))


def _clip(encoder: ViViT, batch: int) -> Float[Tensor, "b c T H W"]:
    """Return noise of the configured size, equal at every call."""
    config, weight = encoder.config, encoder.tubelets.weight
    shape = (batch, config.in_channels, config.num_frames, *config.image_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(weight)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX export needs {', '.join(missing)}; run `pip install 'ssl_vivit[onnx]'`"
        )


def _check_request(module: nn.Module, path: Path, opset: int | None) -> None:
    import onnx

    types = {str(p.dtype).removeprefix("torch.") for p in module.parameters()}
    if types != {"float32"}:
        raise ValueError(
            f"weights are {', '.join(sorted(types))}; ONNX graphs are written in float32: give "
            "the model as model.float()"
        )
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset {opset} cannot be written; use {OLDEST_OPSET} to {newest}")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the name of a file, such as encoder.onnx")


def _describe(model: Any, encoder: ViViT) -> None:
    """Put the encoder's settings into the graph, and take the exporter's own notes out."""
    model.metadata_props["config"] = json.dumps(encoder.config.to_dict())
    model.metadata_props["preprocessing"] = json.dumps(dict(encoder.preprocessing or {}))
    # They hold stack traces with this machine's paths, and are larger than small models.
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    model.graph.metadata_props.clear()


def _check(path: Path, tensors: _Tensors) -> None:
    import onnx
    import onnxruntime

    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        video = _clip(tensors.encoder, batch)
        got = session.run(tensors.names, {"video": video.cpu().numpy()})
        for name, own, other in zip(tensors.names, tensors(video), got, strict=True):
            own = own.cpu()
            difference, largest = (torch.from_numpy(other) - own).abs().max(), own.abs().max()
            if not difference <= TOLERANCE * largest:
                raise RuntimeError(
                    f"the ONNX graph's {name} of {batch} clips differ from the model's by "
                    f"{difference / largest:.1e} of their largest number; nothing is written. Try "
                    "another opset, or check=False to keep the graph"
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Write an exported encoder or classifier as an ONNX graph; returns the exit status."""
    parser = OneLineParser(
        prog="python -m ssl_vivit.encoders.onnx",
        description="Write an exported encoder as an ONNX graph of pooled vectors and tokens, or an "
        "exported classifier as one of logits; checked with onnxruntime.",
    )
    parser.add_argument(
        "model", help="directory of an exported encoder or classifier, or its name on the hub"
    )
    parser.add_argument("out", help="the file to write, such as encoder.onnx")
    parser.add_argument("--opset", type=int, help="version of ONNX's operators")
    args = parser.parse_args(argv)
    try:
        model = load_encoder_or_classifier(args.model)
        export_onnx(model, args.out, opset=args.opset)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    _, names, encoder = _tensors(model)
    config = encoder.config
    clip = (config.in_channels, config.num_frames, *config.image_size)
    print(f"{args.out}: video (batch, {', '.join(map(str, clip))}) → {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
