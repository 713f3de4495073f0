"""The specification's words: names, digests, manifests, ranges and errors. Standard library only."""
