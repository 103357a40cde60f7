"""Engine tests import detectron2, which resnext_det mends first."""

import resnext_det  # noqa: F401
