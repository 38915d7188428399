"""Encoder parameters that an objective's features do not depend on."""

from __future__ import annotations

from ssl_vivit.encoders import ViViT


def freeze_what_serves_pooling_alone(encoder: ViViT) -> None:
    """Freeze the parameters that patch tokens do not depend on.

    A parameter that gets no gradient would be refused by DistributedDataParallel and decayed by
    the optimiser all the same.
    """
    config = encoder.config
    for name, parameter in encoder.named_parameters():
        # Under a causal mask nothing attends to a class token that sees all frames.
        unseen = config.temporal_causal and (
            name == "trunk.temporal_class_token"
            or (config.variant == "joint" and name == "trunk.class_token")
        )
        if unseen or name.startswith(("attention_pooling.", "pooled_norm.")):
            parameter.requires_grad_(False)
