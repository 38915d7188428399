"""Exported models as directories of weights, settings and a card; nothing in them executes."""
