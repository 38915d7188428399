"""Features of videos from exported encoders."""
