"""From images to vectors, and keeping them."""
