//! Packet lines of the git protocol (gitprotocol-common(5)): a length of four hexadecimal digits, then the payload; `0000` ends a section.

use std::io::{self, Read, Write};

/// The maximum length of a packet in bytes, including the length digits (gitprotocol-common(5)).
const MAX_PACKET: usize = 65520;

/// Reads one packet, without its trailing newline. Returns `None` at the end of a section.
pub fn read(from: &mut (impl Read + ?Sized)) -> io::Result<Option<Vec<u8>>> {
    let mut digits = [0; 4];
    from.read_exact(&mut digits)?;
    let length = std::str::from_utf8(&digits).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
    match length {
        Some(0) => Ok(None),
        Some(length) if (4..=MAX_PACKET).contains(&length) => {
            let mut payload = vec![0; length - 4];
            from.read_exact(&mut payload)?;
            if payload.last() == Some(&b'\n') {
                payload.pop();
            }
            Ok(Some(payload))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "git sent an invalid packet line")),
    }
}

/// Writes one packet.
pub fn write(to: &mut (impl Write + ?Sized), payload: &[u8]) -> io::Result<()> {
    if payload.len() + 4 > MAX_PACKET {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the packet line is too long"));
    }
    write!(to, "{:04x}", payload.len() + 4)?;
    to.write_all(payload)
}

/// Ends a section.
pub fn flush(to: &mut (impl Write + ?Sized)) -> io::Result<()> {
    to.write_all(b"0000")?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_round_trips() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"version=1\0push-options atomic").unwrap();
        flush(&mut bytes).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from).unwrap().unwrap(), b"version=1\0push-options atomic");
        assert_eq!(read(&mut from).unwrap(), None);
    }

    #[test]
    fn invalid_length_is_an_error() {
        for bad in [&b"zzzz"[..], b"0003", b"0002", b"0010abc", b"ffff", b"00"] {
            assert!(read(&mut &bad[..]).is_err(), "{bad:?}");
        }
    }
}
