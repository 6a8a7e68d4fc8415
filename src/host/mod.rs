//! Operating-system services for the other modules: durable files, the paths below the root, the users that own listening sockets, streams
//! to and from slow clients, pseudo-terminals, and the client of the keeper. Read [`launch::Launcher`] and [`root::Root`] first.

pub mod files;
pub mod launch;
pub mod pty;
pub mod root;
pub mod sockets;
pub mod stream;

/// A file that exists only in the sandbox of a worker, at the path where the keeper mounts it.
const SANDBOX: &str = "/larder/bin/larder";

/// Returns true in a worker with a private view of the file system. Without namespaces, workers run at real paths, and their `/dev/shm` is that of
/// the machine.
pub fn is_sandboxed() -> bool {
    std::path::Path::new(SANDBOX).exists()
}

/// Returns `BYTES` random bytes from the kernel (getrandom(2)). `BYTES` must be at most 256. The call blocks only during the boot of a
/// machine, until the kernel's random number generator is initialised.
pub fn random<const BYTES: usize>() -> std::io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled == BYTES {
        Ok(bytes)
    } else {
        Err(std::io::Error::other(format!("the kernel returned {filled} random bytes (expected {BYTES})")))
    }
}
