"""Pretrain a ViViT encoder with masked tubelets on CLEVRER videos.

    accelerate launch recipes/mae_clevrer.py
    accelerate launch recipes/mae_clevrer.py --config recipes/configs/mae_vivit_small.yaml \\
        --data.shards 'shards/clevrer-train-*.tar'

Without --config the preset of the sample holds; without --data.shards a sample is rendered once.
"""

from __future__ import annotations

import recipes  # noqa: F401  (before torch)

# isort: split

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data_prep.samples import clevrer_sample
from ssl_vivit.data.video.loader import DataConfig, build_clips
from ssl_vivit.data.video.pretraining_data import pretraining_data
from ssl_vivit.encoders import ViViT
from ssl_vivit.encoders.named_sizes import EncoderChoice
from ssl_vivit.evaluation.monitors.contrastive import EvaluationConfig
from ssl_vivit.evaluation.monitors.masked import MaskedEvaluation
from ssl_vivit.evaluation.monitors.online_probe import OnlineProbe, OnlineProbeConfig
from ssl_vivit.objectives import MaskedTubelets, MaskedTubeletsConfig
from ssl_vivit.training import TrainingConfig, fit, join_processes, parse, run, to_plain

SAMPLE_PRESET = Path(__file__).parent / "configs" / "mae_vivit_sample.yaml"


@dataclass
class MaskedTubeletsRecipe:
    """Pretrain a ViViT encoder with masked tubelets.

    Args:
        encoder: the encoder.
        data: videos, clips and augmentations.
        objective: what is hidden and how it is predicted.
        training: the loop.
        evaluation: what is measured and drawn beside training.
        probe: what the encoder knows of CLEVRER's labels, measured beside training.
    """

    encoder: EncoderChoice = field(default_factory=EncoderChoice)
    data: DataConfig = field(default_factory=DataConfig)
    objective: MaskedTubeletsConfig = field(default_factory=MaskedTubeletsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    probe: OnlineProbeConfig = field(default_factory=OnlineProbeConfig)


def main() -> None:
    """Build the parts and fit."""
    config = parse(MaskedTubeletsRecipe, preset=SAMPLE_PRESET)
    processes = join_processes()
    architecture = config.encoder.config()
    torch.manual_seed(config.training.seed)
    encoder = ViViT(architecture)
    encoder.set_grad_checkpointing(config.encoder.grad_checkpointing)

    data = config.data
    if not data.shards:
        processes.print("no --data.shards given: using the rendered sample in samples/clevrer")
        with processes.local_main_process_first():
            data = replace(data, shards=clevrer_sample())
    clips = build_clips(
        data,
        num_frames=architecture.num_frames,
        size=architecture.image_size,
        in_channels=architecture.in_channels,
        seed=config.training.seed,
    )
    prepared = clips.train.dataset.preprocessing
    objective = MaskedTubelets(encoder, config.objective, preprocessing=prepared)
    watch = MaskedEvaluation(config.evaluation, clips)
    probe = OnlineProbe(config.probe, clips)
    train = clips.train
    trained = pretraining_data(data, train.dataset.videos, train.indices, config.training.seed)
    result = fit(
        objective,
        clips.train,
        config.training,
        run_config=to_plain(config),
        periodic=[*probe.periodic(), watch.periodic()],
        card={"data": trained},
    )
    if result.encoder is not None:
        processes.print(watch.summary(result.run_dir))


if __name__ == "__main__":
    run(main)
