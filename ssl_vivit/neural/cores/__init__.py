"""Cores: modules that turn video into a causal feature map. A core is a ViViT or a baseline."""
