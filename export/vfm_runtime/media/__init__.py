"""Images and videos opened safely, the same way in training and in production."""
