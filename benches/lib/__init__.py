"""What the rows share: a hermetic world, servers to measure, trees to deploy, and the table."""
