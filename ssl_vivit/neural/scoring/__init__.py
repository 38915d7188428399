"""Scores of predicted rates, such as bits per spike, correlation and explained variance."""
