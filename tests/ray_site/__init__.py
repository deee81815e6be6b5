"""What processes of a cluster import as they start."""
