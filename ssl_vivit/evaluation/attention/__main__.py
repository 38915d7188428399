"""Draw the attention of an encoder or a model of neurons."""

import sys

from ssl_vivit.evaluation.attention.command import main

if __name__ == "__main__":
    sys.exit(main())
