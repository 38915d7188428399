"""Speed of training: clips per second, share of the GPU's arithmetic, where a step's time goes."""
