"""A run's directory as one HTML page: ``python -m ssl_vivit.evaluation.report RUN``."""
