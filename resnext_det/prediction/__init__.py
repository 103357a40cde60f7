"""A detector of any kind over images and videos: what goes in, what comes out, and nothing lost in between.

Neither torch nor detectron2 is needed here.
"""
