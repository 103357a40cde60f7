"""A trained detector over images and videos: what goes in, what comes out, and nothing lost in between."""
