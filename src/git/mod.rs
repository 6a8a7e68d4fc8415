//! Repositories, git's own programs, hooks, and the export of a commit.
