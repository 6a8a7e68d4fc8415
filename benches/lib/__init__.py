"""Shared code of the rows: an isolated world, the servers to measure, the trees to deploy, and the table."""
