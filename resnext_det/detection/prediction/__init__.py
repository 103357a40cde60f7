"""A trained detector ready to look at images: found, loaded, made fast."""
