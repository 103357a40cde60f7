"""The paper's tables and figures: their numbers, how to run them, and the results."""
