"""The launcher configurations are ones that this Accelerate understands."""

from __future__ import annotations

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
