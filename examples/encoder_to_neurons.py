"""Fit a causal model of recorded neurons on a pretrained encoder, and one on random weights.

    python examples/encoder_to_neurons.py --session sessions/mine --encoder runs/my_videos/run/encoder

Without --session a small population is simulated; without --encoder the encoder of
weights/mae_neural is used. The script prints the correlation of predicted and recorded responses on
test trials for both models. The defaults take 75 seconds of CPU time; longer training gives better
models.
"""

import argparse
import json
from pathlib import Path

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from recipes.finetune_neural import NeuralRecipe, fine_tune
from ssl_vivit import training
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.neural import load_neural_model

ROOT = Path(__file__).parents[1]
PRESET = ROOT / "recipes" / "configs" / "neural_calcium.yaml"


def main() -> None:
    """Fit both models, print their scores, and predict with the pretrained one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--session", help="folder of a session")
    parser.add_argument("--encoder", default=str(ROOT / "weights" / "mae_neural"))
    parser.add_argument("--out", type=Path, default=Path("runs/to_neurons"), help="new folder")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()

    session = args.session
    if session is None:
        session = str(args.out / "simulated")
        population = SimulationConfig(
            neurons=20, train_trials=24, held_out_movies=2, repeats=4, seconds=2,
            stimuli="textures", calcium=True,
        )  # fmt: skip
        simulate(session, population)
    for weights in ("pretrained", "fresh"):
        # Arguments of recipes/finetune_neural.py.
        words = [
            "--config", str(PRESET), "--sessions", session, "--encoder", args.encoder,
            "--encoder.weights", weights, "--run_dir", str(args.out / weights),
            "--training.steps", str(args.steps), "--training.tracker", "none",
            "--training.precision", "auto",
        ]  # fmt: skip
        fine_tune(training.parse(NeuralRecipe, words), training.join_processes())
        tiers = json.loads((args.out / weights / "scores.json").read_text())["tiers"]
        for tier, found in tiers.items():
            correlation = found["scores"]["correlation_mean"]
            print(f"{weights:11} {tier}: single-trial correlation {correlation:.3f}")

    model, recorded = load_neural_model(args.out / "pretrained"), Session(session)
    trial = recorded.tiers["test"][0]
    rates = model.predict(recorded.video(trial)[None], recorded.behaviour(trial)[None])[0]
    print(f"rates       {tuple(rates.shape)} of a test trial (frames, neurons)")
    print(f"model       {args.out / 'pretrained' / 'model'}")


if __name__ == "__main__":
    training.run(main)
