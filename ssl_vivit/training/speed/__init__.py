"""Speed of training: clips per second, model FLOPs utilisation, time of each phase of a step."""
