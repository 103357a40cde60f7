"""What is installed here, whether it works, and what would fix it."""
