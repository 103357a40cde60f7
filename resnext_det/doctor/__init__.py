"""What is installed here, whether it works, and the fix if not."""
