"""What a pretrained encoder has to beat, in the same harness: linear–nonlinear, ResNet, X3D.

``linear_nonlinear.linear_nonlinear`` puts a whole linear model together.
"""

from ssl_vivit.neural.baselines.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.baselines.causal_x3d import CausalX3D, CausalX3DConfig
from ssl_vivit.neural.baselines.linear_readout import LinearNonlinearConfig, LinearReadout
from ssl_vivit.neural.baselines.pooled_pixels import AppendedBehaviour, PooledPixels

__all__ = [
    "AppendedBehaviour",
    "CausalResNet",
    "CausalResNetConfig",
    "CausalX3D",
    "CausalX3DConfig",
    "LinearNonlinearConfig",
    "LinearReadout",
    "PooledPixels",
]
