"""Make a trained network fast to run: for the classifier here, for the detector in ``detection/optimize.py``."""

CHOICES = ("auto", "fp32", "bf16", "fp16", "int8", "off")
"""Values of the dtype keys; off leaves the layers of training as they are."""
BACKENDS = ("auto", "torch", "openvino")
"""Values of the backend keys."""
