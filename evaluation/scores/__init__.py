"""Scores of predictions, calibration and what a mixture's weights say."""
