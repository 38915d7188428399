"""Settings of Accelerate made before `fit` are used or reported, and restored afterwards."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from toy_objective import toy, toy_batches

from ssl_vivit.errors import RunError
from ssl_vivit.training import Periodic, TrainingConfig, fit, join_processes, processes
from ssl_vivit.training.launcher import resolve_settings
from ssl_vivit.training.processes import call

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all settings of Accelerate that other tests made in this process."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    AcceleratorState._shared_state.clear()
    GradientState._shared_state.clear()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    def tell(**settings: object) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"ACCELERATE_{name.upper()}", str(value))

    return tell


def test_the_launchers_precision_is_trained_in(config, told, capfd) -> None:
    own = fit(toy(), toy_batches(), config("own", precision="bf16"))
    full = fit(toy(), toy_batches(), config("full"))
    told(mixed_precision="bf16")
    launched = fit(toy(), toy_batches(), config("launched"))
    assert launched.metrics["train/loss"] == own.metrics["train/loss"]
    assert launched.metrics["train/loss"] != full.metrics["train/loss"]
    said = capfd.readouterr().err
    assert "overrides" not in said
    assert said.count("training.precision auto uses the launcher's mixed_precision bf16") == 1
    contradicted = fit(toy(), toy_batches(), config("contradicted", precision="fp32"))
    assert contradicted.metrics["train/loss"] == full.metrics["train/loss"]
    said = capfd.readouterr().err
    assert said.count("training.precision fp32 overrides the launcher's mixed_precision bf16") == 1


def test_a_precision_that_does_not_exist_here_is_one_line(config, told) -> None:
    told(mixed_precision="fp8")
    with pytest.raises(
        RunError, match=r"launcher's mixed_precision fp8 is not supported; set it to bf16"
    ):
        fit(toy(), toy_batches(), config())
    told(mixed_precision="fp16")
    with pytest.raises(RunError, match="launcher's mixed_precision fp16 needs a GPU"):
        resolve_settings(TrainingConfig(), CPU)


def test_the_launchers_default_is_named_on_a_gpu(told, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **ignored: True)
    assert resolve_settings(TrainingConfig(), GPU) == (TrainingConfig(precision="bf16"), [])
    told(mixed_precision="no")
    settled, (line,) = resolve_settings(TrainingConfig(), GPU)
    assert settled.precision == "bf16"
    assert "auto uses bf16 on this GPU and ignores the launcher's mixed_precision no" in line
    assert resolve_settings(TrainingConfig(precision="fp32"), GPU)[1] == []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **ignored: False)
    told(mixed_precision="bf16")
    with pytest.raises(RunError, match="mixed_precision bf16: this GPU does not support bfloat16"):
        resolve_settings(TrainingConfig(), GPU)


def test_accumulation_is_the_launchers_unless_training_has_its_own(config, told, capfd) -> None:
    told(gradient_accumulation_steps=2)
    followed = fit(toy(), toy_batches(size=2), config(steps=4))
    assert json.loads((followed.checkpoint / "state.json").read_text())["accumulation"] == 2
    own = fit(toy(), toy_batches(size=2), config("own", steps=4, accumulation=2))
    assert own.metrics["train/loss"] == followed.metrics["train/loss"]
    assert "overrides" not in capfd.readouterr().err
    fit(toy(), toy_batches(size=1), config("four", steps=1, accumulation=4))
    line = "training.accumulation 4 overrides the launcher's gradient_accumulation_steps 2"
    assert line in capfd.readouterr().err
    told(gradient_accumulation_steps="auto")
    with pytest.raises(RunError, match="STEPS is auto; it must be a whole number"):
        fit(toy(), toy_batches(), config("odd"))


def _wrapping(config, name: str, **changes) -> str:
    found = []
    look = Periodic(1, lambda moment: found.append(type(moment.model).__name__))
    fit(toy(), toy_batches(), config(name, steps=1, **changes), periodic=[look])
    return found[0]


def test_the_launchers_compiler_is_used_unless_training_compiles(config, told, capfd) -> None:
    told(dynamo_backend="EAGER")
    assert _wrapping(config, "followed") == "OptimizedModule"
    assert "overrides" not in capfd.readouterr().err
    with torch.compiler.set_stance("force_eager"):
        assert _wrapping(config, "own", compile=True) == "ToyObjective"
    assert "training.compile true overrides the launcher's dynamo_backend EAGER" in (
        capfd.readouterr().err
    )
    told(dynamo_backend="swift")
    with pytest.raises(RunError, match="ACCELERATE_DYNAMO_BACKEND"):
        fit(toy(), toy_batches(), config("odd"))


def test_use_cpu_is_followed_where_there_is_a_gpu(told, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(PartialState, "_shared_state", {})
    told(use_cpu="True")
    assert join_processes().device.type == "cpu"


def test_a_compiled_ddp_model_stays_one_when_a_method_is_called(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = torch.compile(torch.nn.parallel.DistributedDataParallel(toy()), backend="eager")
        names = [name for name, _ in wrapped.named_parameters()]
        call(Accelerator(cpu=True), wrapped, "embed", torch.ones(1, 6))
        assert [name for name, _ in wrapped.named_parameters()] == names
    finally:
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def test_two_fits_with_other_settings_of_one_objective(config) -> None:
    fresh = fit(toy(), toy_batches(), config("fresh"))
    objective = toy()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    fit(objective, toy_batches(), config("bf16", precision="bf16", accumulation=2))
    objective.load_state_dict(before)
    torch.manual_seed(0)
    second = fit(objective, toy_batches(), config("fp32", precision="fp32"))
    assert second.metrics["train/loss"] == fresh.metrics["train/loss"]
    assert "forward" not in vars(objective)


def test_an_existing_accelerator_is_used_and_unchanged(config, capfd) -> None:
    own = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    fitted = fit(toy(), toy_batches(size=2), config(steps=4))
    facts = json.loads((fitted.checkpoint / "state.json").read_text())
    assert (facts["precision"], facts["accumulation"]) == ("bf16", 2)
    fit(toy(), toy_batches(size=1), config("own", steps=4, precision="fp32", accumulation=4))
    said = capfd.readouterr().err
    assert "training.precision fp32 overrides the Accelerator's mixed_precision bf16" in said
    assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 2)


def test_an_accelerator_may_be_made_after_fit_with_other_settings(config) -> None:
    fit(toy(), toy_batches(), config(steps=1))
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


def test_processes_that_an_accelerator_did_not_join_are_refused(config, monkeypatch) -> None:
    fit(toy(), toy_batches(), config(steps=1))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match=r"started 2 processes.*Accelerator\(cpu=True\)"):
        fit(toy(), toy_batches(), config("alone", steps=1))
    assert not Path(config("alone").run_dir).exists()


def test_fit_in_a_thread_trains_and_reports_that_signals_are_ignored(config, capfd) -> None:
    expected = fit(toy(), toy_batches(), config("main"))
    assert "outside of the main thread" not in capfd.readouterr().err
    found = []
    thread = threading.Thread(
        target=lambda: found.append(fit(toy(), toy_batches(), config("thread")))
    )
    thread.start()
    thread.join()
    assert found[0].metrics["train/loss"] == expected.metrics["train/loss"]
    assert (
        capfd.readouterr().err.count("fit runs outside of the main thread: signals do not save")
        == 1
    )


def test_two_fits_at_a_time_are_refused(config) -> None:
    refused = []

    def again(moment) -> None:
        with pytest.raises(RunError, match="fit is already running in this process"):
            fit(toy(), toy_batches(), config("inner", steps=1))
        refused.append(moment.step)

    fit(toy(), toy_batches(), config("outer", steps=2), periodic=[Periodic(2, again)])
    assert refused == [2]
    assert fit(toy(), toy_batches(), config("inner", steps=1)).step == 1


def test_fsdp2_hands_parameters_and_buffers_of_the_first_process_round(monkeypatch) -> None:
    objective, sent = toy(), []
    objective.frozen.register_buffer("shift", torch.zeros(2), persistent=False)
    monkeypatch.setattr(
        processes.dist, "broadcast", lambda tensor, src: sent.append((tensor.data_ptr(), src))
    )
    accelerator = SimpleNamespace(is_fsdp2=True, device=CPU, prepare=lambda *given: given)
    processes.prepare(accelerator, objective, None)
    tensors = [*objective.parameters(), *objective.buffers()]
    assert sent == [(tensor.data_ptr(), 0) for tensor in tensors]
