"""Earlier name of :mod:`ssl_vivit.evaluation.attention.figure`, kept for existing commands."""

import sys

from ssl_vivit.evaluation.attention.command import main
from ssl_vivit.evaluation.attention.figure import attention_over_frames

__all__ = ["attention_over_frames", "main"]

if __name__ == "__main__":
    sys.exit(main())
