//! A container: a release in one file, for transfer without a network. A container is a plain tar of the manifest, the health record and
//! the archive. The archive is last, so that a reader can refuse a release before it reads the archive. The reader takes only the size of
//! a part from its header. A header must equal the header that the writer makes for a part with this size.

use std::io::{self, Read, Write};

use tar::Header;

use super::{ItemKind, header};

/// The names of the parts of a container, in their order.
const PARTS: [&str; 3] = [MANIFEST, HEALTH, ARCHIVE];

/// The name of the manifest in a container.
pub const MANIFEST: &str = "manifest.json";

/// The name of the health record in a container. A container without a health record is valid.
pub const HEALTH: &str = "health.json";

/// The name of the archive in a container.
pub const ARCHIVE: &str = "archive.tar.zst";

/// The reason why a container cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The stream could not be read or written.
    #[error("cannot read the export")]
    Io(#[from] io::Error),
    /// The container is cut off.
    #[error("it is cut off")]
    Cut,
    /// The file is not a container, or its content is invalid.
    #[error("it is not an export of a release: {0}")]
    NotAnExport(&'static str),
    /// A part is too large.
    #[error("its {name} has {bytes} bytes (expected at most {limit})")]
    TooLarge {
        /// The name of the part.
        name: &'static str,
        /// The size of the part in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// Returns the bytes before the content of a part.
pub fn before_part(name: &'static str, size: u64) -> Vec<u8> {
    part_header(name, size)
}

/// Returns the bytes after the content of a part.
pub fn after_part(size: u64) -> Vec<u8> {
    let mut padding = Vec::new();
    header::pad(&mut padding, size);
    padding
}

/// Returns the bytes after all parts.
pub fn after_all() -> Vec<u8> {
    vec![0; header::END]
}

fn part_header(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    header::encode(name, &ItemKind::File { size, digest: None, executable: false }, &mut bytes);
    bytes
}

/// A reader of a container, from its beginning to its end.
pub struct Container<R> {
    from: R,
    /// The header of the next part, if a call of [`Container::next`] for another part has read this header.
    seen: Option<Vec<u8>>,
}

impl<R: Read> Container<R> {
    /// Creates a reader of `from`.
    pub fn new(from: R) -> Container<R> {
        Container { from, seen: None }
    }

    /// Returns the size of the next part, or `None` if the name of the next part is not `name`. After a size was returned, the caller must
    /// read the content of the part with [`Self::content`].
    pub fn next(&mut self, name: &'static str, limit: u64) -> Result<Option<u64>, ContainerError> {
        let block = match self.seen.take() {
            Some(block) => block,
            None => self.exact(header::BLOCK as usize)?,
        };
        let mut read = Header::new_ustar();
        for (to, from) in read.as_mut_bytes().iter_mut().zip(&block) {
            *to = *from;
        }
        let size = read.entry_size().map_err(|_| ContainerError::NotAnExport("it is not a tar"))?;
        if part_header(name, size) != block {
            if PARTS.iter().any(|other| part_header(other, size) == block) {
                self.seen = Some(block);
                return Ok(None);
            }
            return Err(ContainerError::NotAnExport("it contains a part other than manifest, health record and archive"));
        }
        if size > limit {
            return Err(ContainerError::TooLarge { name, bytes: size, limit });
        }
        Ok(Some(size))
    }

    /// Copies the content of a part to `out`. If the stream ends within the content, returns `Ok(Err(n))`, where `n` is the number of
    /// copied bytes.
    pub fn content(&mut self, size: u64, out: &mut impl Write) -> Result<Result<(), u64>, ContainerError> {
        let copied = io::copy(&mut Read::by_ref(&mut self.from).take(size), out)?;
        if copied < size {
            return Ok(Err(copied));
        }
        let padding = self.exact((header::padded(size) - size) as usize)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(ContainerError::NotAnExport("it has bytes between its parts"));
        }
        Ok(Ok(()))
    }

    /// Reads the end of the tar. Returns an error if a part was not read, or if bytes follow the end.
    pub fn end(mut self) -> Result<(), ContainerError> {
        if self.seen.is_some() {
            return Err(ContainerError::NotAnExport("its parts are in the wrong order"));
        }
        let end = self.exact(header::END)?;
        let mut more = [0];
        let behind = self.from.read(&mut more)?;
        if end.iter().any(|byte| *byte != 0) || behind > 0 {
            return Err(ContainerError::NotAnExport("it has bytes after its archive"));
        }
        Ok(())
    }

    fn exact(&mut self, count: usize) -> Result<Vec<u8>, ContainerError> {
        let mut bytes = vec![0; count];
        match self.from.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ContainerError::Cut),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(parts: &[(&'static str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, content) in parts {
            let size = content.len() as u64;
            out.extend([before_part(name, size), content.to_vec(), after_part(size)].concat());
        }
        out.extend(after_all());
        out
    }

    /// Returns all parts of a container.
    fn read(bytes: &[u8]) -> Result<Vec<(&'static str, Vec<u8>)>, ContainerError> {
        let mut from = Container::new(bytes);
        let mut parts = Vec::new();
        for name in PARTS {
            if let Some(size) = from.next(name, 10_000)? {
                let mut content = Vec::new();
                from.content(size, &mut content)?.map_err(|_| ContainerError::Cut)?;
                parts.push((name, content));
            }
        }
        from.end()?;
        Ok(parts)
    }

    #[test]
    fn container_parts_round_trip_and_are_read_by_tar() {
        let long = vec![7; 2000];
        for parts in [
            &[("manifest.json", &b"{}"[..]), ("health.json", b"[]"), ("archive.tar.zst", &long)][..],
            &[("manifest.json", &b"{}"[..]), ("archive.tar.zst", b"")],
        ] {
            let bytes = container(parts);
            let found = read(&bytes).unwrap();
            assert_eq!(found.iter().map(|(name, content)| (*name, &content[..])).collect::<Vec<_>>(), parts);
            let mut archive = tar::Archive::new(&bytes[..]);
            let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
            assert_eq!(names.collect::<Vec<_>>(), parts.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        }
    }

    #[test]
    fn truncated_or_changed_container_is_refused() {
        let bytes = container(&[("manifest.json", b"{}"), ("archive.tar.zst", b"zst")]);
        let whole = read(&bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(matches!(read(&bytes[..cut]), Err(ContainerError::Cut)), "{cut}");
        }
        for at in 0..bytes.len() {
            for change in [1, 0x20, 0xff] {
                let mut altered = bytes.clone();
                altered[at] ^= change;
                // The reader of the container checks all bytes except the content of the parts.
                let content = (512..514).contains(&at) || (1536..1539).contains(&at);
                match read(&altered) {
                    Ok(found) => assert!(content && found != whole, "byte {at}"),
                    Err(_) => assert!(!content, "byte {at}"),
                }
            }
        }
        let mut more = bytes.clone();
        more.push(0);
        assert!(matches!(read(&more), Err(ContainerError::NotAnExport(_))));
    }

    #[test]
    fn container_with_unexpected_parts_is_refused() {
        let is_refused = |parts: &[(&'static str, &[u8])]| matches!(read(&container(parts)), Err(ContainerError::NotAnExport(_)));
        assert!(is_refused(&[("archive.tar.zst", b""), ("manifest.json", b"")]));
        assert!(is_refused(&[("manifest.json", b""), ("manifest.json", b"")]));
        assert!(is_refused(&[("manifest.json", b""), ("../evil", b"")]));
        let large = vec![0; 10_001];
        assert!(matches!(read(&container(&[("manifest.json", &large)])), Err(ContainerError::TooLarge { limit: 10_000, .. })));
        assert!(matches!(read(b""), Err(ContainerError::Cut)));
        assert!(matches!(read(&[b'x'; 4096]), Err(ContainerError::NotAnExport(_))));
    }
}
