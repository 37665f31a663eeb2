"""Search among the embeddings of a store: the nearest images, filters, a contact sheet."""
