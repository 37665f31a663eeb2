"""What models answer: predictions of each task, and when they are to be relied on."""
