//! The ground: files, archives, the launcher of workers, the clock. The only room that touches the operating system directly.

pub mod archive;
pub mod files;
pub mod launch;
pub mod root;
pub mod sockets;
pub mod stream;
