"""Figures restore the pixels of normalised clips exactly."""

import torch

from ssl_vivit.evaluation.figures import pixels


def test_pixels_undo_the_normalisation():
    image = torch.rand(2, 3, 4, 5)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    normalised = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(pixels(normalised, mean, std), image.movedim(1, -1))
    grey = pixels(normalised[:, :1], mean[:1], std[:1])
    assert grey.shape == (2, 4, 5, 3)
    torch.testing.assert_close(grey[..., 2], image[:, 0])
