//! Files, sockets, streams, the launcher of workers: the only module that touches the operating system directly.

pub mod files;
pub mod launch;
pub mod root;
pub mod sockets;
pub mod stream;

/// Returns random bytes from the kernel (getrandom(2)), at most 256. The call blocks only before the kernel has any randomness, early in
/// the boot of a machine.
pub fn random<const BYTES: usize>() -> std::io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled == BYTES { Ok(bytes) } else { Err(std::io::Error::other(format!("{filled} random bytes (expected {BYTES})"))) }
}
