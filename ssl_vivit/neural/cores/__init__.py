"""Cores: from video to a causal feature map, a ViViT or one of the baselines that it is compared with."""
