"""The rows of the table: one file for each row, or for a group of rows."""
