"""Images, annotations and proposals, from files to arrays."""
