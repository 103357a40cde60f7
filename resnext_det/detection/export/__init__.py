"""A detector as a graph that runs without detectron2."""
