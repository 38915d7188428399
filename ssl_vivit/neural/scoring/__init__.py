"""Scores of predicted rates: bits per spike, correlation, explained variance."""
