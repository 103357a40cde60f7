"""A trained detector over images and videos: inputs, outputs, and nothing lost in between."""
