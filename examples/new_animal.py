"""Fit a core to one animal, and then only readouts to a few trials of a new animal.

    python examples/new_animal.py --animal sessions/a --new sessions/b --trials 16

Without sessions two animals are simulated. The script prints the correlation of predicted and
recorded responses on test trials of the new animal, for readouts on the core of the other animal
and for a whole model trained from random weights on as many trials. The defaults take a minute
and a half of CPU time; docs/tutorials/new_animal.md has results of longer training.
"""

import argparse
import json
from pathlib import Path

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from recipes.finetune_neural import NeuralRecipe, fine_tune
from ssl_vivit import training

PRESET = Path(__file__).parents[1] / "recipes" / "configs" / "neural_calcium.yaml"


def fit(run: Path, session: str, steps: int, *settings: str) -> float:
    """Fit a model to a session, and return its correlation on the test trials.

    Args:
        run: directory of the run.
        session: folder of the session.
        steps: number of training steps.
        settings: further arguments of recipes/finetune_neural.py.
    """
    words = [
        "--config", str(PRESET), "--sessions", session, "--run_dir", str(run),
        "--training.steps", str(steps), "--training.tracker", "none",
        "--training.precision", "auto", *settings,
    ]  # fmt: skip
    fine_tune(training.parse(NeuralRecipe, words), training.join_processes())
    tiers = json.loads((run / "scores.json").read_text())["tiers"]
    return next(iter(tiers.values()))["scores"]["correlation_mean"]


def main() -> None:
    """Fit the animal's model, the new animal's readouts, and a model from random weights."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--animal", help="session that the core is fitted to")
    parser.add_argument("--new", help="session of the new animal, with frames of the same size")
    parser.add_argument("--trials", type=int, default=8, help="training trials of the new animal")
    parser.add_argument("--out", type=Path, default=Path("runs/new_animal"), help="new folder")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    if (args.animal is None) != (args.new is None):
        parser.error("give both --animal and --new, or neither for simulated animals")

    sessions = [args.animal, args.new]
    if args.new is None:
        sessions = [str(args.out / "animal"), str(args.out / "new")]
        for seed, folder in enumerate(sessions, start=1):
            population = SimulationConfig(
                neurons=20, train_trials=24, held_out_movies=2, repeats=4, seconds=2,
                stimuli="textures", calcium=True, seed=seed,
            )  # fmt: skip
            simulate(folder, population)
    few = ("--data.train_trials", str(args.trials))
    fit(args.out / "core", sessions[0], args.steps)
    core = ("--core_from", str(args.out / "core"), "--tuning.mode", "frozen")
    readouts = fit(args.out / "readouts", sessions[1], args.steps, *few, *core)
    fresh = fit(args.out / "fresh", sessions[1], args.steps, *few)
    print(f"readouts on the core of the other animal  {readouts:.3f}")
    print(f"whole model from fresh weights            {fresh:.3f}")


if __name__ == "__main__":
    training.run(main)
