"""One readable file a job: a config dataclass, build the parts, fit.

Import this package before torch, as every recipe does.
"""

import os

# On CPUs torch's threads share the cores with the workers that decode. By default they spin while
# they wait, which starves both. OpenMP reads this when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
