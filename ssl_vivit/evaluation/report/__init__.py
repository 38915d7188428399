"""HTML report of a run. Command: ``python -m ssl_vivit.evaluation.report RUN``."""
