//! Bundling a tree into a release archive, and installing a release from one.
