"""Models of neurons: from an encoder's tokens to rates, and how well they predict."""
