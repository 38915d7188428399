"""Random generators and splits that are seeded by names."""

from __future__ import annotations

from ssl_vivit.data.randomness import name_fraction, named_generator


def test_names_that_are_not_utf_8_are_names_too():
    odd = b"caf\xe9.mp4".decode(errors="surrogateescape")
    assert name_fraction(odd) == name_fraction(odd) != name_fraction("café.mp4")
    assert named_generator(0, odd).random() != named_generator(0, "café.mp4").random()
