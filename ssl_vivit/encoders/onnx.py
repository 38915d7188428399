"""Export encoders as graphs for other runtimes: torch.export and ONNX.

python -m ssl_vivit.encoders.onnx EXPORTED_DIR OUT.onnx

The graph of an encoder returns ``pooled`` and ``tokens``; the graph of a :class:`VideoClassifier`
returns ``logits``.
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

# The oldest opset that torch's exporter writes directly; conversion to older ones may fail.
OLDEST_OPSET = 18
# Largest allowed difference, relative to the largest number of an output. Float32 rounding in the
# deepest encoders stays below it.
TOLERANCE = 1e-4


class TensorEncoder(nn.Module):
    """Encoder that returns a tuple of tensors (pooled, tokens), as graphs need.

    Args:
        encoder: the encoder.
    """

    def __init__(self, encoder: ViViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, video: Float[Tensor, "b c T H W"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b t n d"]]:
        """Return the pooled vector (b, d) and the tokens (b, t, n, d) of each clip."""
        out = self.encoder(video)
        assert out.tokens is not None
        return out.pooled, out.tokens


class _Tensors(NamedTuple):
    """Callable that runs a model on a video, in eval mode, and returns a list of tensors.

    Attributes:
        module: module from video (B, C, T, H, W) to one or several tensors.
        names: names of the module's outputs.
        encoder: the encoder inside the module.
    """

    module: nn.Module
    names: list[str]
    encoder: ViViT

    def __call__(self, video: Float[Tensor, "b c T H W"]) -> list[Tensor]:
        with evaluation_mode(self.module), torch.no_grad():
            out = self.module(video)
        return [out] if isinstance(out, Tensor) else list(out)


def _tensors(model: ViViT | VideoClassifier) -> _Tensors:
    model = getattr(model, "_orig_mod", model)  # the module inside torch.compile's wrapper
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
    """Export a model in eval mode as a program of torch.export.

    Clips must have the configured size; for another size, first call
    :func:`ssl_vivit.encoders.adapt.adapt`. The program shares the model's weights.

    Args:
        model: the encoder or classifier; its training mode is not changed.
        dynamic_batch: accept any number of clips; False accepts only one.

    Returns:
        A program whose ``module()`` takes video (B, C, T, H, W). For an encoder it returns pooled
        (B, d) and tokens (B, t, n, d); for a classifier logits (B, classes), or the features before
        the head if there are no classes.

    Raises:
        TypeError: for a model of another class.
    """
    tensors = _tensors(model)
    shapes = {"video": {0: torch.export.Dim("batch", min=1)} if dynamic_batch else {}}
    # torch.export would take a batch size of 1 as a constant.
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
    """Write a model as an ONNX graph for any number of clips of the configured size.

    The input is ``video`` (batch, C, T, H, W), normalised by the encoder's ``preprocessing``. The
    outputs are ``pooled`` (batch, d) and ``tokens`` (batch, t, n, d) for an encoder, and ``logits``
    (batch, classes) for a classifier, or ``features`` if it has no classes. The graph's metadata
    contain ``config`` and ``preprocessing`` of the encoder as JSON. The file is written atomically
    and replaces an existing file.

    Args:
        model: the encoder or classifier, in float32.
        path: the file; missing parents are created.
        opset: version of ONNX's operators; None is the exporter's default.
        external_data: write the weights to a second file, named ``path`` plus ``.data``; None does
            so if a single file would reach the format's limit of 2 GB.
        check: compare the graph's outputs in onnxruntime with the model's, for one and for three
            clips.

    Raises:
        ImportError: if ONNX's packages are missing; the message names the extra to install.
        TypeError: if the model is not an encoder or classifier.
        ValueError: if the weights are not float32, or the opset cannot be written.
        RuntimeError: if the outputs differ in ``check``; nothing is written.
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
        raise ValueError(
            f"opset {opset} cannot be written by torch {torch.__version__}; use a lower one"
        )
    _describe(program.model, tensors.encoder)
    with temporary_beside(path) as new:
        new.mkdir()
        # The graph refers to external data by file name, so write them under the final name.
        program.save(new / path.name, external_data=external_data)
        if check:
            _check(new / path.name, tensors)
        if any(new.glob("*.data")):
            # Remove the old graph first: an interruption must not leave it beside new weights.
            path.unlink(missing_ok=True)
        for file in sorted(new.iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))


def _clip(encoder: ViViT, batch: int) -> Float[Tensor, "b c T H W"]:
    """Return clips of noise of the configured size; every call returns the same noise."""
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
            f"weights are {', '.join(sorted(types))}, but ONNX graphs are written in float32; pass "
            "model.float()"
        )
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset {opset} cannot be written; use {OLDEST_OPSET} to {newest}")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the name of a file, such as encoder.onnx")


def _describe(model: Any, encoder: ViViT) -> None:
    """Add the encoder's settings to the ONNX model's metadata; remove the exporter's metadata."""
    model.metadata_props["config"] = json.dumps(encoder.config.to_dict())
    model.metadata_props["preprocessing"] = json.dumps(dict(encoder.preprocessing or {}))
    # The exporter's metadata are large and contain stack traces with local paths.
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
                    f"{difference / largest:.1e} of their largest number; nothing was written. Try "
                    "another opset, or set check=False to write the graph anyway"
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Write an exported encoder or classifier as an ONNX graph; returns the exit status."""
    parser = OneLineParser(
        prog="python -m ssl_vivit.encoders.onnx",
        description="Convert an exported encoder to an ONNX graph that returns pooled vectors and "
        "tokens, or an exported classifier to a graph that returns logits. onnxruntime checks the "
        "graph's outputs.",
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
        return 1 if isinstance(error, RuntimeError) else 2
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
