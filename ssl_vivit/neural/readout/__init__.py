"""Readouts: modules that compute the drive of each neuron from a feature map."""
