//! The search for secrets in a built tree, before its archive is accepted.
//!
//! A build gets credentials that the release must not contain. The search covers the bytes of all files: raw, URL-encoded, in base64 and in
//! hexadecimal, also inside of gzip members.

use std::io::{self, BufReader, Read, Seek as _, SeekFrom};

use aho_corasick::AhoCorasick;
use flate2::read::GzDecoder;
use larder_archive::{Item, ItemKind};

use super::ReleaseError;
use crate::{
    host::files::{Confined, FileError},
    model::{ConfigVariables, encoded_forms},
};

/// The first bytes of a gzip member (RFC 1952, section 2.3.1).
const GZIP: &[u8] = b"\x1f\x8b\x08";
/// The maximum number of gzip members of a file.
const MAX_MEMBERS: usize = 1000;
/// The maximum size of the unpacked content of a gzip member, in bytes.
const MAX_UNPACKED: u64 = 1 << 30;
/// The maximum depth of gzip members inside of gzip members.
const MAX_DEPTH: usize = 2;

/// A search for the values of secrets.
pub struct LeakSearch {
    automaton: AhoCorasick,
    /// The name of the secret of each pattern; `None` for the beginning of a gzip member.
    names: Vec<Option<String>>,
}

impl LeakSearch {
    /// Creates a search for values of at least 8 bytes. Returns `None` if there is no such value.
    pub fn new(secrets: &ConfigVariables) -> Option<LeakSearch> {
        let (mut patterns, mut names) = (Vec::new(), Vec::new());
        for (name, value) in secrets.iter() {
            for form in encoded_forms(value) {
                patterns.push(form);
                names.push(Some(name.to_owned()));
            }
        }
        if patterns.is_empty() {
            return None;
        }
        patterns.push(GZIP.to_vec());
        names.push(None);
        Some(LeakSearch { automaton: AhoCorasick::new(patterns).ok()?, names })
    }

    /// Searches all files of a tree.
    ///
    /// # Errors
    /// The first file with a secret, or a file that cannot be read.
    pub fn tree(&self, app: &Confined, items: &[Item]) -> Result<(), ReleaseError> {
        let mut cursor = app.cursor();
        for item in items.iter().filter(|item| matches!(item.kind, ItemKind::File { .. })) {
            let mut file = cursor.open(item.path.as_str())?;
            let failed = |error: io::Error| ReleaseError::from(FileError::io("search", app.shown(&item.path), error));
            let (mut found, members) = self.stream(BufReader::with_capacity(1 << 16, &file)).map_err(failed)?;
            for start in members {
                if found.is_some() {
                    break;
                }
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                found = self.member(Box::new(BufReader::new(&file)), 1);
            }
            if let Some(name) = found {
                return Err(ReleaseError::Leaked { path: item.path.clone(), name: name.to_owned() });
            }
        }
        Ok(())
    }

    /// Returns the name of the first secret in a stream, or else the places of gzip members.
    fn stream(&self, reader: impl Read) -> io::Result<(Option<&str>, Vec<u64>)> {
        let mut members = Vec::new();
        for found in self.automaton.stream_find_iter(reader) {
            let found = found?;
            match self.names.get(found.pattern().as_usize()) {
                Some(Some(name)) => return Ok((Some(name), Vec::new())),
                _ if members.len() < MAX_MEMBERS => members.push(u64::try_from(found.start()).unwrap_or(u64::MAX)),
                _ => {}
            }
        }
        Ok((None, members))
    }

    /// Searches the unpacked content of a gzip member. A damaged member is searched up to its damage.
    fn member<'r>(&self, reader: Box<dyn Read + 'r>, depth: usize) -> Option<&str> {
        let unpacked = GzDecoder::new(reader).take(MAX_UNPACKED);
        if depth >= MAX_DEPTH {
            return self.until_damage(unpacked);
        }
        // A member may begin with another member, such as a compressed archive of compressed files. Only this case is unpacked again.
        let mut unpacked = BufReader::new(unpacked);
        let is_member = io::BufRead::fill_buf(&mut unpacked).is_ok_and(|start| start.starts_with(GZIP));
        match is_member {
            true => self.member(Box::new(unpacked), depth.saturating_add(1)),
            false => self.until_damage(unpacked),
        }
    }

    fn until_damage(&self, reader: impl Read) -> Option<&str> {
        let mut found = self.automaton.stream_find_iter(reader).map_while(Result::ok);
        found.find_map(|found| self.names.get(found.pattern().as_usize())?.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const VALUE: &str = "npm_s3cret/token+value=";

    fn search() -> LeakSearch {
        LeakSearch::new(&[(String::from("NPM_TOKEN"), VALUE.as_bytes().to_vec())].into_iter().collect()).unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn of(content: &[u8]) -> Result<(), ReleaseError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), content).unwrap();
        let size = content.len() as u64;
        let items = [Item { path: String::from("file"), kind: ItemKind::File { size, executable: false, digest: None } }];
        search().tree(&Confined::open(directory.path()).unwrap(), &items)
    }

    #[test]
    fn value_is_found_in_every_form_and_names_the_file() {
        let padded = [vec![b'x'; 200_000], VALUE.as_bytes().to_vec(), vec![b'x'; 100]].concat();
        let embedded = [b"header".as_slice(), &gzip(&padded), b"trailer"].concat();
        for (what, content) in [
            ("raw", VALUE.as_bytes().to_vec()),
            ("padded", padded.clone()),
            ("base64", data_encoding::BASE64.encode(format!("user:{VALUE}").as_bytes()).into_bytes()),
            ("url", b"npm_s3cret%2Ftoken%2Bvalue%3D".to_vec()),
            ("hex", data_encoding::HEXLOWER.encode(VALUE.as_bytes()).into_bytes()),
            ("gzip", gzip(&padded)),
            ("embedded", embedded),
            ("twice", gzip(&gzip(&padded))),
        ] {
            let error = of(&content).expect_err(what).to_string();
            assert!(error.contains("\"file\"") && error.contains("NPM_TOKEN") && !error.contains("s3cret"), "{what}: {error}");
        }
        let mut damaged = gzip(&padded);
        damaged.truncate(damaged.len() - 4);
        assert!(of(&damaged).is_err());
        for content in [b"nothing".to_vec(), gzip(b"nothing"), b"\x1f\x8b\x08\x1f\x8b\x08".to_vec(), Vec::new()] {
            assert!(of(&content).is_ok());
        }
        assert!(LeakSearch::new(&[(String::from("SHORT"), b"true".to_vec())].into_iter().collect()).is_none());
    }
}
