"""Make a trained network fast to run: for the classifier here, for the detector in ``detection/optimize.py``."""
