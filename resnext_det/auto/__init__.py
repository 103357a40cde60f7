"""From a folder of labels to a trained detector: what is in the data, settings with their reasons, and the run."""
