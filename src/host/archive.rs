//! The only tar and zstd.
