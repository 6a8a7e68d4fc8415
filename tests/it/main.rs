//! The integration binary: real processes, hermetic worlds.

mod keeper;
