"""Recipes: each file contains a config dataclass and a main function for one job.

Every recipe imports this package before torch, since OpenMP reads the setting below when torch
loads. With it, idle CPU threads sleep, and leave the cores to the processes that decode videos.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
