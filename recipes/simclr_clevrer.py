"""Pretrain a ViViT encoder with SimCLR on CLEVRER videos.

    python recipes/simclr_clevrer.py
    python recipes/simclr_clevrer.py --config recipes/configs/simclr_vivit_small.yaml \\
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
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.monitors.contrastive import ContrastiveEvaluation
from ssl_vivit.evaluation.monitors.online_probe import OnlineProbe
from ssl_vivit.objectives.config import SimCLRConfig

SAMPLE_PRESET = Path(__file__).parent / "configs" / "simclr_vivit_sample.yaml"


@dataclass
class SimCLRRecipe(PretrainingRecipe):
    """Pretrain a ViViT encoder with SimCLR.

    Args:
        objective: the contrastive loss and its projection head.
    """

    objective: SimCLRConfig = field(default_factory=SimCLRConfig)

    def __post_init__(self) -> None:
        if self.data.clip.views != 2:
            raise DataError(
                f"--data.clip.views is {self.data.clip.views}; SimCLR contrasts two views: set it "
                "to 2"
            )


def main() -> None:
    """Build encoder, data and objective, and train."""
    config = training.parse(SimCLRRecipe, preset=SAMPLE_PRESET)
    processes, seed = training.join_processes(), config.training.seed
    encoder = config.encoder.build(seed)
    run_config = training.to_plain(config)
    training.check_run(objectives.SimCLR, config.training, run_config)
    data = config.data
    if not data.shards:
        data = replace(data, shards=sample_shards(processes))
    clips = clips_for(encoder.config, data, seed)
    introduce(processes, config.encoder.name, encoder, data, clips)
    train = clips.train
    objective = objectives.SimCLR(
        encoder, config.objective, preprocessing=train.dataset.preprocessing
    )
    watch = ContrastiveEvaluation(config.evaluation, clips)
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
