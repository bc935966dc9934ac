"""Training objectives, one loss a file: each gives its gradient summed over one local batch."""
