"""Pretrain a ViViT encoder with masked tubelets on CLEVRER videos.

    python recipes/mae_clevrer.py
    python recipes/mae_clevrer.py --config recipes/configs/mae_vivit_small.yaml \\
        --data.shards 'shards/clevrer-train-*.tar'

Defaults: without --config, the preset of the sample; without --data.shards, a sample that is
rendered once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from recipes.pretraining import PretrainingRecipe, clips_for, introduce
from recipes.samples import sample_shards
from ssl_vivit import objectives, training
from ssl_vivit.data.provenance import pretraining_data
from ssl_vivit.evaluation.monitors.masked import MaskedEvaluation
from ssl_vivit.evaluation.monitors.online_probe import OnlineProbe
from ssl_vivit.objectives.config import MaskedTubeletsConfig

SAMPLE_PRESET = Path(__file__).parent / "configs" / "mae_vivit_sample.yaml"


@dataclass
class MaskedTubeletsRecipe(PretrainingRecipe):
    """Pretrain a ViViT encoder with masked tubelets.

    Args:
        objective: masking and prediction of masked tubelets.
    """

    objective: MaskedTubeletsConfig = field(default_factory=MaskedTubeletsConfig)


def main() -> None:
    """Build encoder, data and objective, and train."""
    config = training.parse(MaskedTubeletsRecipe, preset=SAMPLE_PRESET)
    processes, seed = training.join_processes(), config.training.seed
    encoder = config.encoder.build(seed)
    objectives.check_masks(config.objective, encoder.config)
    run_config = training.to_plain(config)
    training.check_run(objectives.MaskedTubelets, config.training, run_config)
    data = config.data
    if not data.shards:
        data = replace(data, shards=sample_shards(processes))
    clips = clips_for(encoder.config, data, seed)
    introduce(processes, config.encoder.name, encoder, data, clips)
    train = clips.train
    objective = objectives.MaskedTubelets(
        encoder, config.objective, preprocessing=train.dataset.preprocessing
    )
    watch = MaskedEvaluation(config.evaluation, clips)
    result = training.fit(
        objective,
        train,
        config.training,
        run_config=run_config,
        periodic=[*OnlineProbe(config.probe, clips).periodic(), watch.periodic()],
        card={"data": pretraining_data(data, train.dataset.videos, train.indices, seed)},
    )
    if result.encoder is not None:
        processes.print(watch.summary(result.run_dir))


if __name__ == "__main__":
    training.run(main)
