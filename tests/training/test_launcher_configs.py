"""The launcher configurations are valid for the installed Accelerate."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "accelerate"


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_gpu", DistributedType.NO, 1, 1),
        ("ddp", DistributedType.MULTI_GPU, 1, 8),
        ("fsdp2", DistributedType.FSDP, 1, 8),
        ("two_nodes", DistributedType.MULTI_GPU, 2, 16),
    ],
)
def test_loads(name: str, kind: DistributedType, machines: int, processes: int) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert (config.num_machines, config.num_processes) == (machines, processes)
    # The recipe's training.precision decides; a precision here would be a second, silent setting.
    assert config.mixed_precision == "no"
    # The scheduler decides which GPUs a process sees.
    assert "gpu_ids" not in yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def test_every_fsdp_setting_is_an_option_of_the_launcher() -> None:
    options = {action.dest for action in launch_command_parser()._actions}
    settings = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    assert settings["fsdp_version"] == 2
    assert set(settings) <= options


STUBS = {
    "scontrol": '[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"',
    # Every node's task, in turn; options of srun are left out.
    "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
    "accelerate": 'printf "%s\\n" "$@" END',
}


def test_the_slurm_script_launches_one_run_on_both_nodes(tmp_path: Path) -> None:
    script = CONFIGS / "two_nodes.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    done = subprocess.run(
        ["bash", script, "recipes/simclr_clevrer.py", "--data.shards", "/data/a b.tar"],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    launches = [lines.splitlines() for lines in done.stdout.split("END\n")[:-1]]
    assert len(launches) == 2
    for rank, (command, *words) in enumerate(launches):
        assert command == "launch"
        # An option that the launcher does not have raises SystemExit here.
        found = launch_command_parser().parse_args(words)
        assert (found.num_machines, found.num_processes) == (2, 16)
        assert (found.machine_rank, found.main_process_ip) == (rank, "node1")
        config = CONFIGS.parents[2] / found.config_file
        assert load_config_from_file(str(config)).num_processes == 16
        assert found.training_script == "recipes/simclr_clevrer.py"
        given = ["--data.shards", "/data/a b.tar", "--resume", "auto"]
        assert found.training_script_args == given
    settings = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1"} <= {*settings}
