"""Readouts: modules that read a feature map for each neuron."""
