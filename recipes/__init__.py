"""Recipes: each file holds a config dataclass and a main function for one job.

Every recipe imports from here before torch, since OpenMP reads this setting when torch loads: on CPUs
threads that wait for work then sleep, and leave the cores to the processes that decode videos.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
