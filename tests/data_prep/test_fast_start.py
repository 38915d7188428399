"""--help of a command loads no library that only its work needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {"av", "h5py", "matplotlib", "numpy", "pandas", "PIL", "pymunk", "pynwb", "torch"}
COMMANDS = ("clevrer", "nwb", "sensorium", "synthetic_clevrer", "synthetic_neural")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_slow(name):
    script = (
        "import sys\n"
        f"from data_prep.{name}.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*{module.split('.')[0] for module in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "usage: " in done.stdout
    assert not SLOW & set(done.stdout.splitlines()[-1].split())
