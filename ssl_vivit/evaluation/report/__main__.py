"""Write the report of a run."""

from ssl_vivit.evaluation.report.command import main
from ssl_vivit.training import run

if __name__ == "__main__":
    run(main)
