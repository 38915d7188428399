"""Checkpoints: the state that they hold, their files, and the thread that writes them."""
