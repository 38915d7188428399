"""Parameters and multiply-adds of encoders, compared with the numbers in the paper.

python -m ssl_vivit.evaluation.complexity [--name vivit_small] [--overrides.image_size '[128, 192]']
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssl_vivit.encoders import VideoClassifier, ViViT, ViViTConfig, named_config
from ssl_vivit.encoders.config import Variant
from ssl_vivit.encoders.trunks.blocks import ParallelBlock, PreNormBlock
from ssl_vivit.settings import check_least
from ssl_vivit.training import parse, run

# Arnab et al. 2021, Table 3: millions of parameters and GFLOPs of ViViT-B/16x2 on Kinetics-400.
# Their counter, compute_flops in google-research/scenic, halves the operations that XLA reports.
# XLA also counts norms, softmax and activations, which gives up to 1 % more than the count here.
PAPER: dict[str, tuple[float, float]] = {
    "joint": (88.9, 455.0),
    "factorized_encoder": (115.1, 284.0),
    "factorized_self_attention": (117.3, 372.0),
    "factorized_dot_product": (88.9, 277.0),
}


class Complexity(NamedTuple):
    """Parameters of a model, and multiply-adds of a forward pass that returns one vector per clip.

    Attributes:
        parameters: number of parameters.
        whole: multiply-adds if each block computes all of its tokens, as in the paper's models.
        run: multiply-adds that are executed. The last block of Model 1 and the last spatial block
            of Model 2 compute only the class token if no other token is read.
    """

    parameters: int
    whole: int
    run: int


def count(model: ViViT | VideoClassifier | ViViTConfig, batch: int = 1) -> Complexity:
    """Count a model's parameters and the multiply-adds of its forward pass.

    The forward pass runs on the meta device and computes only shapes, whatever device the model is
    on. A model in training mode is counted with patch dropout.

    Args:
        model: an encoder, a classifier, or an encoder's config. The encoder returns no patch
            tokens.
        batch: number of clips, which have the configured size.
    """
    if isinstance(model, ViViTConfig):
        with torch.device("meta"):
            model = ViViT(model).eval()
    config = model.encoder.config if isinstance(model, VideoClassifier) else model.config
    options = {} if isinstance(model, VideoClassifier) else {"tokens": False}
    shape = (batch, config.in_channels, config.num_frames, *config.image_size)
    video = torch.empty(shape, device="meta", dtype=next(model.parameters()).dtype)
    done = multiply_adds(model, video, **options)
    with whole_blocks(model):
        whole = multiply_adds(model, video, **options)
    return Complexity(sum(p.numel() for p in model.parameters()), whole, done)


def multiply_adds(model: nn.Module, *inputs: Tensor, **options: Any) -> int:
    """Count the multiply-adds of the matrix products and convolutions in a forward pass.

    A multiply-add counts as one operation. Attention with a causal mask is counted as if there were
    no mask. Causal Model 1 uses no mask: it computes attention one time step at a time. Norms,
    softmax, activations and biases are not counted.

    Args:
        model: a module whose computation depends only on the shapes of its arguments.
        inputs: tensors on any device; only their shapes are used.
        options: keyword arguments of the call.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: torch.empty_like(x, device="meta") for name, x in tensors.items()}
    arguments = tuple(torch.empty_like(x, device="meta") for x in inputs)
    counter = FlopCounterMode(display=False)
    # Not every device and version counts fused attention; the MATH backend is always counted.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        functional_call(model, on_meta, arguments, options)
    return counter.get_total_flops() // 2


@contextmanager
def whole_blocks(model: nn.Module) -> Iterator[None]:
    """Context in which blocks compute all tokens, even if only the class token is read."""

    def all_queries(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, rotation, mask, *_ = args
        return x, rotation, mask

    hooks = [
        module.register_forward_pre_hook(all_queries)
        for module in model.modules()
        if isinstance(module, PreNormBlock | ParallelBlock)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class ComplexityTable:
    """Print parameters and multiply-adds of the four models.

    Args:
        name: name of an encoder size.
        overrides: settings of ViViTConfig that replace those of the named size. With ``variant``
            the table has only the row of that model.
        num_classes: classes of the head; 0 for no head.
    """

    name: str = "vivit_base_16x2"
    overrides: dict[str, Any] = field(default_factory=dict)
    num_classes: int = 400

    def counts(self) -> dict[str, Complexity]:
        """Compute the complexity of each variant.

        Raises:
            ValueError: if the size or a setting is unknown, or if a setting does not fit a variant.
        """
        check_least(self, num_classes=0)
        variants = [self.overrides["variant"]] if "variant" in self.overrides else get_args(Variant)
        counts = {}
        for variant in variants:
            config = named_config(self.name, **{**self.overrides, "variant": variant})
            with torch.device("meta"):
                counts[variant] = count(VideoClassifier(ViViT(config), self.num_classes).eval())
        return counts

    def markdown(self) -> str:
        """Return the table in Markdown, with the paper's numbers for the paper's configuration."""
        paper = self.name == "vivit_base_16x2" and not self.overrides and self.num_classes == 400
        head = ["model", "M parameters", *["(paper)"] * paper]
        head += ["GFLOPs", *["(paper)"] * paper, "only the class token in the last block"]
        rows = [head, ["---", *["---:"] * (len(head) - 1)]]
        for variant, counted in self.counts().items():
            parameters, flops = PAPER[variant]
            whole, done = counted.whole / 1e9, counted.run / 1e9
            model = f"{get_args(Variant).index(variant) + 1}, `{variant}`"
            row = [model, f"{counted.parameters / 1e6:.2f}", *[f"{parameters:.1f}"] * paper]
            row += [f"{whole:.1f}", *[f"{flops:.0f}"] * paper]
            rows.append([*row, f"{done:.1f}" if done < whole else ""])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table of parameters and multiply-adds."""
    print(parse(ComplexityTable).markdown())


if __name__ == "__main__":
    run(main)
