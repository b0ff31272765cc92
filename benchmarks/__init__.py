"""What is asked of a trained model and how its answers are judged."""
