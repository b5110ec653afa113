"""What is done to the user's model."""
