"""A trained detector as files that run without torch and detectron2: written once, checked whenever they are read."""
