"""Scores and figures of trained models of neurons."""
