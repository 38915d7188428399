"""Recorded sessions → windows for training and whole trials for evaluation."""
