//! Files, sockets, streams, the launcher of workers: the only module that touches the operating system directly.

pub mod files;
pub mod launch;
pub mod root;
pub mod sockets;
pub mod stream;
