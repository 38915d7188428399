"""Recipes, one file each: a config dataclass, the parts that it builds, and a call of fit.

Every recipe imports from here before torch, since OpenMP reads this setting when torch loads: on CPUs
threads that wait for work then sleep, and leave the cores to the processes that decode videos.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
