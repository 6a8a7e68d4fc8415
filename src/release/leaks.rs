//! The search for secrets in a built tree, before its archive is accepted.
//!
//! A build gets credentials that the release must not contain. The search covers the bytes of all files: raw, URL-encoded, in base64 and in
//! hexadecimal, also inside of gzip members. A file with a value is refused, except for a value that is a common word or a short number: such
//! a value is in files that have nothing to do with the secret, so it only gives a warning.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
};

use aho_corasick::{AhoCorasick, Match};
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

/// The maximum size of a file that is read as a whole, in bytes. The search of a slice is many times faster than that of a stream, because only it
/// skips to the rare bytes of the patterns.
const MAX_WHOLE: u64 = 8 << 20;

/// The maximum size of a value that may be a common word, in bytes.
const MAX_WORD: usize = 20;
/// The maximum number of runs of letters or digits in a value that may be a common word, such as `eu-west-1`.
const MAX_RUNS: usize = 3;

/// A search for the values of secrets.
#[derive(Default)]
pub struct LeakSearch {
    /// The search for values that refuse a release.
    strong: Option<Patterns>,
    /// The search for common words, in their raw form and outside of gzip members only.
    words: Option<Patterns>,
}

struct Patterns {
    automaton: AhoCorasick,
    /// The name of the secret of each pattern; `None` for the beginning of a gzip member.
    names: Vec<Option<String>>,
}

impl LeakSearch {
    /// Creates a search for values of at least 8 bytes. Returns `None` if there is no such value.
    pub fn new(secrets: &ConfigVariables) -> Option<LeakSearch> {
        let (mut strong, mut words) = (Vec::new(), Vec::new());
        for (name, value) in secrets.iter() {
            match is_common(value) {
                true => words.extend(encoded_forms(value).into_iter().take(1).map(|form| (form, Some(name.to_owned())))),
                false => strong.extend(encoded_forms(value).into_iter().map(|form| (form, Some(name.to_owned())))),
            }
        }
        if !strong.is_empty() {
            strong.push((GZIP.to_vec(), None));
        }
        let search = LeakSearch { strong: Patterns::new(strong), words: Patterns::new(words) };
        (search.strong.is_some() || search.words.is_some()).then_some(search)
    }

    /// Searches all files of a tree. Returns warnings about common words, one line for each secret.
    ///
    /// # Errors
    /// The first file with a secret, or a file that cannot be read.
    pub fn tree(&self, app: &Confined, items: &[Item]) -> Result<Vec<String>, ReleaseError> {
        let mut cursor = app.cursor();
        // The first file with each common word, and the number of files.
        let mut seen: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
        let mut buffer = Vec::new();
        for item in items {
            let ItemKind::File { size, .. } = item.kind else { continue };
            let mut file = cursor.open(item.path.as_str())?;
            let failed = |error: io::Error| ReleaseError::from(FileError::io("search", app.shown(&item.path), error));
            let whole = size <= MAX_WHOLE;
            if whole {
                buffer.clear();
                (&file).take(MAX_WHOLE).read_to_end(&mut buffer).map_err(failed)?;
            }
            let whole = whole.then_some(buffer.as_slice());
            let strong = self.strong.as_ref().map(|strong| strong.file(&mut file, whole)).transpose().map_err(failed)?;
            if let Some(name) = strong.flatten() {
                return Err(ReleaseError::Leaked { path: item.path.clone(), name: name.to_owned() });
            }
            if let Some(words) = &self.words {
                for name in words.all(&mut file, whole).map_err(failed)? {
                    let entry = seen.entry(name).or_insert((item.path.as_str(), 0));
                    entry.1 = entry.1.saturating_add(1);
                }
            }
        }
        let line = |(name, (path, count)): (&str, (&str, usize))| {
            let more = match count {
                1 => String::from(" contains"),
                2 => String::from(" and 1 more file contain"),
                count => format!(" and {} more files contain", count.saturating_sub(1)),
            };
            let why = "which is a common word or number, so the release is accepted; choose a longer value for a secret";
            format!("{path:?}{more} the value of {name}, {why}")
        };
        Ok(seen.into_iter().map(line).collect())
    }
}

/// Returns true for a value that is found in files by chance: at most three words or numbers in a short text, such as `database`, `Password1`,
/// `db.internal` or `eu-west-1`. A word has letters of one case, except for its first letter.
fn is_common(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    if value.len() > MAX_WORD {
        return false;
    }
    let class = |byte: u8| match byte {
        b'a'..=b'z' => Some('a'),
        b'A'..=b'Z' => Some('A'),
        b'0'..=b'9' => Some('0'),
        b'-' | b'_' | b'.' | b'/' | b':' | b'@' | b' ' => None,
        _ => Some('?'),
    };
    let (mut runs, mut before, mut length) = (0_usize, None, 0_usize);
    for byte in value {
        let now = class(*byte);
        match (before, now) {
            (_, Some('?')) => return false,
            // A capital begins a word.
            (Some('A'), Some('a')) if length == 1 => {}
            (before, Some(now)) if before == Some(now) => {}
            (_, Some(_)) => {
                runs = runs.saturating_add(1);
                length = 0;
            }
            (_, None) => length = 0,
        }
        length = length.saturating_add(1);
        before = now;
    }
    runs <= MAX_RUNS
}

impl Patterns {
    fn new(patterns: Vec<(Vec<u8>, Option<String>)>) -> Option<Patterns> {
        if patterns.is_empty() {
            return None;
        }
        let (patterns, names): (Vec<_>, Vec<_>) = patterns.into_iter().unzip();
        Some(Patterns { automaton: AhoCorasick::new(patterns).ok()?, names })
    }

    /// Returns the name of the first secret in a file, also inside of gzip members. `whole` is the content of a small file.
    fn file(&self, file: &mut File, whole: Option<&[u8]>) -> io::Result<Option<&str>> {
        let (mut found, members) = match whole {
            Some(bytes) => self.first(self.automaton.find_iter(bytes).map(Ok))?,
            None => self.first(self.automaton.stream_find_iter(BufReader::with_capacity(1 << 16, &*file)))?,
        };
        for start in members {
            if found.is_some() {
                break;
            }
            file.seek(SeekFrom::Start(start))?;
            found = self.member(Box::new(BufReader::new(&*file)), 1);
        }
        Ok(found)
    }

    /// Returns the names of all secrets in a file. A word inside of a longer word counts for one of them.
    fn all(&self, file: &mut File, whole: Option<&[u8]>) -> io::Result<BTreeSet<&str>> {
        let name = |found: Match| self.names.get(found.pattern().as_usize()).and_then(Option::as_deref);
        if let Some(bytes) = whole {
            return Ok(self.automaton.find_iter(bytes).filter_map(name).collect());
        }
        file.seek(SeekFrom::Start(0))?;
        let found = self.automaton.stream_find_iter(BufReader::with_capacity(1 << 16, &*file));
        found.filter_map(|found| found.map(name).transpose()).collect()
    }

    /// Returns the name of the first secret among matches, or else the places of gzip members.
    fn first(&self, matches: impl Iterator<Item = io::Result<Match>>) -> io::Result<(Option<&str>, Vec<u64>)> {
        let mut members = Vec::new();
        for found in matches {
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

    fn of(content: &[u8]) -> Result<Vec<String>, ReleaseError> {
        searched(&search(), content)
    }

    fn searched(search: &LeakSearch, content: &[u8]) -> Result<Vec<String>, ReleaseError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), content).unwrap();
        let size = content.len() as u64;
        let items = [Item { path: String::from("file"), kind: ItemKind::File { size, executable: false, digest: None } }];
        search.tree(&Confined::open(directory.path()).unwrap(), &items)
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
        // A file that is too large to be read as a whole is searched in the same way.
        let large = vec![b'x'; usize::try_from(MAX_WHOLE).unwrap()];
        for end in [VALUE.as_bytes().to_vec(), gzip(&padded)] {
            assert!(of(&[large.clone(), end].concat()).is_err());
        }
        assert!(of(&large).is_ok());
        let mut damaged = gzip(&padded);
        damaged.truncate(damaged.len() - 4);
        assert!(of(&damaged).is_err());
        for content in [b"nothing".to_vec(), gzip(b"nothing"), b"\x1f\x8b\x08\x1f\x8b\x08".to_vec(), Vec::new()] {
            assert!(of(&content).is_ok());
        }
        assert!(LeakSearch::new(&[(String::from("SHORT"), b"true".to_vec())].into_iter().collect()).is_none());
    }

    #[test]
    fn common_word_gives_a_warning_and_hides_no_secret() {
        let secrets = [("database.name", "database"), ("database.password", "database-8f3kQ2")];
        let secrets = secrets.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let search = LeakSearch::new(&secrets.into_iter().collect()).unwrap();
        let warnings = searched(&search, b"the database of the shop").unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("\"file\" contains the value of database.name"), "{warnings:?}");
        // The word is the beginning of the password.
        let error = searched(&search, b"database database-8f3kQ2").unwrap_err().to_string();
        assert!(error.contains("database.password"), "{error}");
        assert!(searched(&search, b"nothing").unwrap().is_empty());
    }

    #[test]
    fn only_short_texts_of_few_words_are_common() {
        for common in [
            "password",
            "Password",
            "database",
            "eu-west-1",
            "my_database",
            "12345678",
            "/var/lib/shop",
            "Password1",
            "db.internal",
            "admin:password",
        ] {
            assert!(is_common(common.as_bytes()), "{common}");
        }
        for secret in [
            "correct-horse-battery-staple",
            "hunter2-hunter2-x",
            "s3cr3tpw",
            "aB3dE5gH",
            "qwertyuiopasdfghjklzxc",
            "10.0.0.12",
            "0123456789012345678901",
            "glpat-x1Y2z3",
            "p@ssw0rd!",
            "deadbeef01abcdef23",
            "npm_s3cret/token+value=",
            "passW0rd",
        ] {
            let runs = is_common(secret.as_bytes());
            assert!(!runs, "{secret}");
        }
    }
}
