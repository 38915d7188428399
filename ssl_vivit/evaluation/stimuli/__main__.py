"""Find the most exciting stimuli of a model of neurons."""

from ssl_vivit.evaluation.stimuli.command import main
from ssl_vivit.training import run

if __name__ == "__main__":
    run(main)
