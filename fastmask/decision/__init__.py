"""Decision: rules from probabilities to classes, their calibration and their scores."""
