"""Engines, which run the chunks of a job: in this process, or on a cluster."""
