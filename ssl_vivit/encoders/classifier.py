"""An encoder with a classification head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders.vivit import ViViT


class VideoClassifier(nn.Module):
    """Video → logits: encoder, an optional tanh representation layer, a linear head.

    Args:
        encoder: the encoder, whose pooled vector is classified.
        num_classes: classes; 0 returns the features before the head.
        representation_size: width of a layer with tanh between the pooled vector and the head
            (Dosovitskiy et al. 2021, Sec. 3.1); None is no such layer.
        drop_rate: dropout before the head.
    """

    def __init__(
        self,
        encoder: ViViT,
        num_classes: int,
        representation_size: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.representation = (
            None
            if representation_size is None
            else nn.Linear(encoder.embed_dim, representation_size)
        )
        self.num_features = representation_size or encoder.embed_dim
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b classes"]:
        """Logits, or features where there are no classes."""
        x = self.encoder(video, tokens=False).pooled
        if self.representation is not None:
            x = self.representation(x).tanh()
        return self.head(self.head_drop(x))
