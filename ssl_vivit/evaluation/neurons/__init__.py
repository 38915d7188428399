"""Scores and figures of a fitted model of neurons."""
