"""Speed of a run: profile of steps, wait for data, utilisation."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy_objective import ToyLoader, ToyObjective, toy, toy_batches

from ssl_vivit.data.phases import phase, record_phases
from ssl_vivit.training import Periodic, fit
from ssl_vivit.training.speed import profile
from ssl_vivit.training.speed.profile import PhaseTimes
from ssl_vivit.training.speed.utilisation import Utilisation, peak_flops


class SlowForward(ToyObjective):
    def forward(self, batch):
        time.sleep(0.03)
        return super().forward(batch)


class SlowLoader(ToyLoader):
    def stream(self, split, *, start_step, device):
        for batch in super().stream(split, start_step=start_step, device=device):
            time.sleep(0.06)
            with phase("augmentation"):
                time.sleep(0.02)
            yield batch


def lines_of(run_dir: Path) -> list[dict]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "train/loss" in row]


def table(printed: str) -> dict[str, tuple[float, float]]:
    rows = re.findall(r"^ {9}(\S.*?) +([\d.]+) +(\d+)%", printed, flags=re.MULTILINE)
    return {name: (float(ms), float(share)) for name, ms, share in rows}


def test_a_profile_lists_the_times_of_a_steps_phases(config, capsys) -> None:
    job = Periodic(2, lambda moment: time.sleep(0.02))
    settings = config(steps=9, profile=4, log_every=100, checkpoint_every=100)
    found = fit(SlowForward(), SlowLoader(torch.float32), settings, periodic=[job])
    printed = capsys.readouterr().err
    assert "profile  4 steps, " in printed
    rows = table(printed)
    assert list(rows) == [
        "wait for data", "augmentation", "forward", "backward", "optimiser", "logging",
        "evaluation", "rest",
    ]  # fmt: skip
    for name, expected in (("wait for data", 60), ("augmentation", 20), ("forward", 30)):
        assert expected <= rows[name][0], name
        # Sleeping takes longer where the machine is busy.
        assert rows[name][0] < 3 * expected, name
    # Two of the four steps evaluate.
    assert 10 <= rows["evaluation"][0] < 30
    assert 97 <= sum(share for _, share in rows.values()) <= 103
    whole = float(re.search(r"steps, ([\d.]+) ms each", printed)[1])
    assert sum(ms for ms, _ in rows.values()) == pytest.approx(whole, abs=1)
    trace = json.loads((found.run_dir / "profile.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("forward") >= 4
    assert any("aten::linear" in str(name) for name in names)


def test_a_run_that_ends_earlier_profiles_the_steps_that_it_has(config, capsys) -> None:
    found = fit(toy(), toy_batches(), config("short", steps=profile.SKIPPED + 2, profile=9))
    assert "profile  2 steps, " in capsys.readouterr().err
    assert (found.run_dir / "profile.json").is_file()
    found = fit(toy(), toy_batches(), config("shorter", steps=profile.SKIPPED, profile=9))
    assert "profile " not in capsys.readouterr().err
    assert not (found.run_dir / "profile.json").exists()


def test_a_profile_changes_no_weight(config) -> None:
    weights = [
        fit(toy(), toy_batches(), config(str(steps), steps=8, profile=steps)).metrics["train/loss"]
        for steps in (0, 3)
    ]
    assert weights[0] == weights[1]


def test_an_error_inside_of_a_profile_ends_it(config) -> None:
    class Fails(ToyObjective):
        steps = 0

        def forward(self, batch):
            self.steps += 1
            if self.steps == 6:
                raise ZeroDivisionError
            return super().forward(batch)

    with pytest.raises(ZeroDivisionError):
        fit(Fails(), toy_batches(), config(steps=9, profile=5))
    with phase("forward"):
        pass
    fit(toy(), toy_batches(), config("next", steps=2))


def test_the_time_of_an_inner_phase_counts_once() -> None:
    times, start = PhaseTimes(torch.device("cpu")), time.perf_counter()
    record_phases(times)
    try:
        with phase("wait for data"):
            time.sleep(0.02)
            with phase("augmentation"):
                time.sleep(0.04)
    finally:
        record_phases(None)
    both = time.perf_counter() - start
    assert times.host["augmentation"] >= 0.04
    assert times.host["wait for data"] >= 0.02
    assert sum(times.host.values()) <= both
    assert times.device() == {}


def test_waiting_for_data_is_logged_as_a_share(config) -> None:
    shares = []
    for loader in (SlowLoader(torch.float32), toy_batches()):
        found = fit(SlowForward(), loader, config(type(loader).__name__, steps=4, log_every=1))
        shares.append([line["train/data_wait"] for line in lines_of(found.run_dir)][1:-1])
    # 80 of 110 ms and more.
    assert all(0.5 < share < 0.9 for share in shares[0])
    assert all(share < 0.4 for share in shares[1])


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("cpu", None),
        ("Tesla K80", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bf16") == peak
    assert peak_flops(name, "fp32") is None


def test_utilisation_is_counted_arithmetic_over_the_peak(config, monkeypatch) -> None:
    monkeypatch.setattr(
        "ssl_vivit.training.metrics.run_log.peak_flops", lambda name, precision: 1e6
    )
    found = fit(toy(), toy_batches(), config(steps=3, log_every=1))
    model, (batch, *_) = toy(), toy_batches()
    with FlopCounterMode(display=False) as counter:
        model(batch).loss.backward()
    logged = lines_of(found.run_dir)
    assert len(logged) == 3
    for line in logged:
        expected = counter.get_total_flops() / 4 * line["train/clips_per_second"] / 1e6
        assert line["system/mfu"] == pytest.approx(expected)


def test_arithmetic_is_counted_once_and_without_a_known_peak_never() -> None:
    x = torch.randn(4, 5)
    for peak, expected in ((100.0, 2 * 4 * 5 * 5 / 4 * 3 / 100), (None, None)):
        found = Utilisation(peak)
        for width in (5, 7):
            with found.counting(4):
                x @ torch.randn(5, width)
        share = found.share(3)
        assert share == (None if expected is None else pytest.approx(expected))
