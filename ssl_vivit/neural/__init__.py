"""Models of neurons: from an encoder's tokens to rates, and how well they predict."""

from ssl_vivit.neural.readouts import GaussianReadout, ReadoutConfig

__all__ = ["GaussianReadout", "ReadoutConfig"]
