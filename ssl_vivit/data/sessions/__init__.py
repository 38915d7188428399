"""Recorded sessions, loaded as windows for training and as whole trials for evaluation."""
