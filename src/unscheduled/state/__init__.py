"""What is kept for each parameter and group, and in which form."""
