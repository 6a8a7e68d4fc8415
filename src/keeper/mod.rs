//! The privileged role: starts every other process in its sandbox and keeps applications running.
