"""Measure tuning curves of a model of neurons."""

from ssl_vivit.evaluation.tuning.command import main
from ssl_vivit.training import run

if __name__ == "__main__":
    run(main)
