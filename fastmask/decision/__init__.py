"""Decision: from probabilities to classes, how sure they are, and what they came to."""
