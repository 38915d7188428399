"""The report of a run: numbers, pictures, escaped text, notes on missing parts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_folders import neural_run, pretraining_run, write_config, write_metrics

from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.errors import UserError
from ssl_vivit.evaluation.neurons.evaluation import evaluate
from ssl_vivit.evaluation.neurons.scored_tiers import scored_tiers
from ssl_vivit.evaluation.report.command import main
from ssl_vivit.evaluation.report.neural_sections import score_model
from ssl_vivit.evaluation.report.page import Section, page, picture, table
from ssl_vivit.evaluation.report.run_files import RunFiles
from ssl_vivit.evaluation.report.training_sections import state
from ssl_vivit.neural.checkpoint import load_neural_model


class Page(HTMLParser):
    """Parts of a page: rows of each table, and the attributes of all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tables, self.tags, self.in_cell = text, [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def attributes(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def write(monkeypatch, capsys):
    """Write a report; return the page and the printed text."""

    def call(run: Path, *words: str) -> tuple[Page, str]:
        monkeypatch.setattr(sys, "argv", ["report", str(run), *words])
        main()
        told = capsys.readouterr()
        return Page((run / "report.html").read_text()), told.out + told.err

    return call


@pytest.fixture(scope="module")
def neural(tmp_path_factory) -> Path:
    return neural_run(tmp_path_factory.mktemp("neural"))


def loads_nothing(made: Page) -> None:
    for _, attributes in made.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    assert not re.search(r"@import|url\(", made.text)
    policy = made.attributes("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; img-src data:")


def test_scores_units_and_pictures_of_a_model_of_neurons(neural, write):
    made, told = write(neural)
    assert "report.html" in told
    loads_nothing(made)
    predictor = load_neural_model(neural / "model")
    config = RunFiles(neural).setting("data.sessions")
    found = build_sessions(NeuralDataConfig(config, window=1), facts=predictor.facts)
    tiers = evaluate(predictor, scored_tiers(found))
    rows = made.tables[0]
    assert rows[0][:4] == ["tier", "session", "score", "value"]
    shown = {(row[0].partition(" ")[0], row[2]): row[3] for row in rows[1:]}
    for tier, own in tiers.items():
        assert shown[tier, "single-trial correlation"] == f"{own.scores['correlation_mean']:.3f}"
        assert shown[tier, "bits per spike"] == f"{own.scores['bps_mean']:.3f}"
    # A sortable table for each tier with a row for each unit.
    of_units = [rows for rows in made.tables if rows[0][:2] == ["session", "unit"]]
    assert [len(rows) - 1 for rows in of_units] == [7] * len(tiers)
    for rows, own in zip(of_units, tiers.values(), strict=True):
        values = own.of_neurons.neurons(predictor.sessions[0])["correlation"]
        column = rows[0].index("single-trial correlation")
        numbers = [float(row[column] or "nan") for row in rows[1:]]
        np.testing.assert_allclose(numbers, values, atol=5e-4)
    # Best and worst units, positions, fields, tuning, curves.
    assert len(made.attributes("img")) == 6
    assert all(attributes["alt"] for attributes in made.attributes("img"))
    assert "How it was made" in made.text
    assert "left out" not in made.text


def test_scores_leave_out_the_frames_that_training_dropped(neural, tmp_path):
    path = Path(shutil.copytree(neural, tmp_path / "run"))
    folders = RunFiles(path).setting("data.sessions")
    predictor = load_neural_model(path / "model")
    write_config(path, {"data": {"sessions": folders, "drop_first": 12}})
    made = score_model(RunFiles(path), predictor, folders)
    found = {}
    for drop_first in (0, 12):
        data = NeuralDataConfig(folders, window=drop_first + 1, drop_first=drop_first)
        tiers = scored_tiers(build_sessions(data, facts=predictor.facts))
        found[drop_first] = evaluate(predictor, tiers)
    for tier, own in found[12].items():
        assert made.tiers[tier].scores == pytest.approx(own.scores, nan_ok=True)
        whole = found[0][tier].scores["correlation_mean"]
        assert abs(own.scores["correlation_mean"] - whole) > 1e-3


def test_best_and_worst_units_are_those_and_the_traces_are_means_over_repeats(neural):
    run = RunFiles(neural)
    predictor = load_neural_model(neural / "model")
    folders = run.setting("data.sessions")
    scored = score_model(run, predictor, folders)
    found = build_sessions(NeuralDataConfig(folders, window=1), facts=predictor.facts)
    session = found.sessions[0]
    for (tier, _), movie in scored.movies.items():
        numbers = [trial for _, trial in scored_tiers(found)[tier].trials]
        recorded = {trial: session.responses(trial) for trial in numbers}
        same = [
            [one for one in numbers if session.trials[one].content == session.trials[trial].content]
            for trial in numbers
        ]
        longest = max(map(len, same))
        assert movie.trials == longest
        means = [
            np.mean([recorded[trial] for trial in group], axis=0)
            for group in same
            if len(group) == longest
        ]
        assert any(np.allclose(movie.recorded, mean, atol=1e-5) for mean in means)


def test_without_repeats_ceilings_are_left_out(tmp_path, write):
    made, _ = write(neural_run(tmp_path, repeats=1), "--draw", "0")
    assert "No movie of these trials was shown several times" in made.text
    assert "FEVE)</td>" not in made.text


def test_recordings_that_are_gone_leave_the_parts_of_the_model(neural, tmp_path, write):
    run = tmp_path / "moved"
    shutil.copytree(neural, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(neural.parent), "/gone"))
    stored = {"scores": {"bps_mean": 0.25, "correlation_mean": 0.5}, "ceiling": {"bps_mean": 0.75}}
    (run / "scores.json").write_text(json.dumps({"tiers": {"test": stored}}))
    made, told = write(run)
    assert "Scores, units and traces are left out: recording /gone/" in made.text
    assert made.tables[0][1:] == [
        ["test", "bits per spike", "0.250", "0.750"],
        ["test", "single-trial correlation", "0.500", ""],
    ]
    assert "give the sessions' folders by --sessions" in told
    assert "Tuning, " in made.text
    with pytest.raises(UserError, match="recording elsewhere is missing"):
        write(run, "--sessions", "elsewhere")
    made, _ = write(run, "--sessions", str(neural.parent / "session"), "--draw", "0")
    assert "left out" not in made.text
    assert "Tuning, " not in made.text


def test_a_pretraining_run_that_was_stopped(tmp_path, write):
    made, _ = write(pretraining_run(tmp_path))
    loads_nothing(made)
    assert "The run has ended early: step 20 of 40." in made.text
    # Curves that are drawn here, and the first and the last sheet.
    told = [attributes["alt"] for attributes in made.attributes("img")]
    assert told == ["curves", "reconstructions, step 0", "reconstructions, step 20"]
    rows = {row[0]: row[1:] for row in made.tables[0]}
    assert rows["train/loss"] == ["1.000", "0.050", "1.000", "0.050"]
    assert rows["train/lr"] == ["1e-05"] * 4
    # Text of users is no HTML.
    assert "<script>alert" not in made.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made.text


@pytest.mark.parametrize(
    ("step", "told"), [(39, "has ended early: step 39 of 40."), (40, "has ended: step 40 of 40.")]
)
def test_a_run_has_ended_early_before_its_last_step(step, told, tmp_path):
    write_config(tmp_path, {"training": {"steps": 40}})
    write_metrics(tmp_path, [{"step": step}])
    assert state(RunFiles(tmp_path)) == f"The run {told}"


def test_the_last_step_is_that_of_the_newest_checkpoint_if_no_later_step_was_logged(tmp_path):
    write_config(tmp_path, {"training": {"steps": 40}})
    write_metrics(tmp_path, [{"step": 20}])
    for name in ("step_00000020", "step_00000023"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert state(RunFiles(tmp_path)) == "The run has ended early: step 23 of 40."


def test_a_run_that_is_still_going(tmp_path, write):
    run = pretraining_run(tmp_path)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run / "run.lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        made, told = write(run)
    finally:
        holder.communicate()
    assert "The run is still going on: step 20 of 40." in made.text
    assert "The run is still going on: step 20 of 40. The report shows the results so far." in told
    (run / "run.lock").chmod(0)  # of another user
    made, _ = write(run)
    assert "still going on" not in made.text


def test_a_comparison_with_baselines(tmp_path, write):
    run = pretraining_run(tmp_path)
    results = [
        {
            "tier": "test",
            "row": row,
            "trials": 16,
            "mean": mean,
            "standard_error": error,
            "seeds": [],
        }
        for row, mean, error in (("vivit", 0.5, 0.01), ("ln & co", 0.25, None))
    ]
    references = [{"tier": "test", "name": "true rates", "trials": 16, "score": 0.75}]
    content = {"facts": {}, "metric": "bps_mean", "results": results, "references": references}
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(content))
    made, _ = write(run, "--compare", str(path))
    rows = [["model", "16 trials"], ["vivit", "0.500 ± 0.010"], ["ln & co", "0.250"],
            ["true rates", "0.750"]]  # fmt: skip
    assert made.tables[0] == rows
    path.write_text("{}")
    with pytest.raises(UserError, match=r"comparison\.json is no comparison\.json of recipes"):
        write(run, "--compare", str(path))


def test_refusals(tmp_path, write):
    with pytest.raises(UserError, match="missing is no directory"):
        write(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds none of metrics\.jsonl, config\.yaml"):
        write(tmp_path)
    run = pretraining_run(tmp_path)
    with pytest.raises(UserError, match="is a directory; give the name of an HTML file"):
        write(run, "--out", str(tmp_path))
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml is damaged; remove it"):
        write(run)


def test_cells_and_pictures(tmp_path):
    made = Page(page("<t>", "", [Section("a", table(["x"], [[0.0], [1e-5], [float("nan")], [3]]))]))
    assert [row[0] for row in made.tables[0]] == ["x", "0.000", "1e-05", "", "3"]
    values = [attributes["data-value"] for attributes in made.attributes("td")]
    assert values == ["0.0", "1e-05", "", "3"]
    assert "<title>&lt;t&gt;</title>" in made.text
    path = tmp_path / "a.png"
    path.write_bytes(b"abc")
    assert picture(path, 'a "b"') == (
        '<figure><img src="data:image/png;base64,YWJj" alt="a &quot;b&quot;">'
        "<figcaption>a &quot;b&quot;</figcaption></figure>"
    )
