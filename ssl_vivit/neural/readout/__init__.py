"""Readouts: from a feature map to the rates of single neurons."""
