//! The embedded SSH server.
