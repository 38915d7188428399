"""The error for a model of neurons that does not fit what it is asked for."""


class NeuralModelError(ValueError):
    """Parts, sessions or inputs that do not fit; the message is one line that names the mend."""
