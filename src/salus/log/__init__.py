"""The commit log: claims, records, amendments, checkpoints, tags, and what a reader sees of them."""
