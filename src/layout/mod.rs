//! Where each role of an environment lives on disk.
