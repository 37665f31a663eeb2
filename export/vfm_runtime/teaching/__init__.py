"""Teaching: classes that a loaded model learns from a few images at run time, kept apart from its bundle."""
