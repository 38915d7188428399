"""Draw an encoder's attention over a video."""

import sys

from ssl_vivit.evaluation.attention.figure import main

if __name__ == "__main__":
    sys.exit(main())
