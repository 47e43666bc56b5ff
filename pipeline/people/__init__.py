"""Who stands in for whom: keys, embeddings, virtual identities and the book of people seen."""
