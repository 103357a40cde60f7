"""The paper's tables and figures: what they say, how to run them, what came out."""
