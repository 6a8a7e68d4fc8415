//! The walk over a commit's tree: one pass, cut off at the first limit, reading no file's content. What the previous export has
//! already checked and lies in an unchanged directory is taken from its list.

use git2::{ObjectType, Odb, Oid, Repository};

use super::{Refusal, SourceLimits, Stop, failed};
use crate::model::{Digest, SourceEntry, SourceKind, sanitise_reason};

/// The largest tree object that is parsed, in bytes: git's own limit for names leaves room for a hundred thousand of them.
const TREE_LIMIT: usize = 32 << 20;
/// The longest target of a link; the kernel takes no longer one.
const TARGET_LIMIT: usize = 4095;
/// The longest name; file systems take no longer one.
const NAME_LIMIT: usize = 255;

const DIRECTORY: i32 = 0o040_000;
const LINK: i32 = 0o120_000;
const GITLINK: i32 = 0o160_000;

/// An entry to be exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its path.
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

/// What a planned entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file, with its digest if that is known already.
    File {
        /// The blob.
        oid: Oid,
        /// Its size.
        size: u64,
        /// Whether it may be executed.
        executable: bool,
        /// The digest of its content, if the previous export has computed it.
        digest: Option<Digest>,
    },
    /// A symbolic link.
    Link {
        /// Its target.
        target: String,
    },
}

struct Walk<'a> {
    repository: &'a Repository,
    odb: Odb<'a>,
    limits: &'a SourceLimits,
    known: &'a [SourceEntry],
    found: Vec<Planned>,
    bytes: u64,
}

/// All entries of `tree`, sorted by path. `known` is the previous export and its tree.
pub fn walk(
    repository: &Repository,
    tree: Oid,
    known: Option<(&[SourceEntry], Oid)>,
    limits: &SourceLimits,
) -> Result<Vec<Planned>, Stop> {
    let odb = repository.odb().map_err(|error| failed("open the objects")(error.message()))?;
    let (entries, known_tree) = known.map_or((&[][..], None), |(entries, tree)| (entries, Some(tree)));
    let mut walk = Walk { repository, odb, limits, known: entries, found: Vec::new(), bytes: 0 };
    walk.directory(tree, known_tree, "", 0)?;
    let mut found = walk.found;
    found.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    if let Some((twice, _)) = found.iter().zip(found.iter().skip(1)).find(|(one, next)| one.path == next.path) {
        return Err(refuse(&twice.path, "is there twice", "make the commit again with a current git").into());
    }
    Ok(found)
}

fn refuse(path: &str, reason: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal { path: Some(printable(path)), reason: reason.into(), hint: hint.into() }
}

fn printable(path: &str) -> String {
    sanitise_reason(path)
}

impl Walk<'_> {
    fn directory(&mut self, tree: Oid, known: Option<Oid>, path: &str, depth: usize) -> Result<(), Stop> {
        if known == Some(tree) {
            return self.unchanged(path);
        }
        if depth > self.limits.depth {
            let reason = format!("is deeper than {} directories", self.limits.depth);
            return Err(refuse(path, reason, "flatten the directories").into());
        }
        let doing = || format!("read directory {:?} of the commit", printable_root(path));
        let (size, _) = self.odb.read_header(tree).map_err(|error| failed(doing())(error.message()))?;
        if size > TREE_LIMIT {
            return Err(refuse(printable_root(path), "holds too many files", "spread them over directories").into());
        }
        let tree = self.repository.find_tree(tree).map_err(|error| failed(doing())(error.message()))?;
        let known = known.and_then(|known| self.repository.find_tree(known).ok());
        for entry in &tree {
            let name = self.name(entry.name_bytes(), path)?;
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            if below.len() > self.limits.path_bytes {
                let reason = format!("has a path of more than {} bytes", self.limits.path_bytes);
                return Err(refuse(&below, reason, "shorten it").into());
            }
            // What a well-behaved git never writes, such as set-user-id bits, is read as the mode that it stands for.
            let mode = entry.filemode_raw();
            match mode & 0o170_000 {
                DIRECTORY => {
                    self.add(&below, Kind::Dir)?;
                    let before = known.as_ref().and_then(|known| known.get_name_bytes(entry.name_bytes()));
                    let before = before.filter(|before| before.kind() == Some(ObjectType::Tree)).map(|before| before.id());
                    self.directory(entry.id(), before, &below, depth + 1)?;
                }
                LINK => {
                    let target = self.target(entry.id(), &below)?;
                    self.add(&below, Kind::Link { target })?;
                }
                GITLINK => return Err(submodule(&below).into()),
                _ => self.file(entry.id(), mode & 0o111 != 0, below)?,
            }
        }
        Ok(())
    }

    /// A directory that the previous export has seen just so.
    fn unchanged(&mut self, path: &str) -> Result<(), Stop> {
        let known = self.known;
        let (from, to) = if path.is_empty() {
            (0, known.len())
        } else {
            // What is below a directory lies between `path/` and the character after the slash.
            let (first, after) = (format!("{path}/"), format!("{path}0"));
            (known.partition_point(|entry| entry.path < first), known.partition_point(|entry| entry.path < after))
        };
        for entry in known.get(from..to).unwrap_or_default() {
            let kind = match &entry.kind {
                SourceKind::Dir => Kind::Dir,
                SourceKind::Link { target } => Kind::Link { target: target.clone() },
                SourceKind::File { size, digest, executable, blob } => Kind::File {
                    oid: Oid::from_bytes(blob).map_err(|error| failed("read the list of the last export")(error.message()))?,
                    size: *size,
                    executable: *executable,
                    digest: Some(*digest),
                },
            };
            self.add(&entry.path, kind)?;
        }
        Ok(())
    }

    fn file(&mut self, oid: Oid, executable: bool, path: String) -> Result<(), Stop> {
        if let Some((size, digest)) = self.known_file(oid, &path) {
            return self.add(&path, Kind::File { oid, size, executable, digest: Some(digest) });
        }
        let (size, kind) = self.header(oid, &path)?;
        if kind != ObjectType::Blob {
            return Err(refuse(&path, "is not a file", "make the commit again with a current git").into());
        }
        self.add(&path, Kind::File { oid, size, executable, digest: None })
    }

    /// What the previous export found out about the same content at the same place.
    fn known_file(&self, oid: Oid, path: &str) -> Option<(u64, Digest)> {
        let at = self.known.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
        match &self.known.get(at)?.kind {
            SourceKind::File { size, digest, blob, .. } if blob.as_slice() == oid.as_bytes() => Some((*size, *digest)),
            _ => None,
        }
    }

    fn header(&self, oid: Oid, path: &str) -> Result<(u64, ObjectType), Stop> {
        let doing = || format!("read {:?} of the commit", printable(path));
        let (size, kind) = self.odb.read_header(oid).map_err(|error| failed(doing())(error.message()))?;
        Ok((size as u64, kind))
    }

    fn target(&self, oid: Oid, path: &str) -> Result<String, Stop> {
        let odd = |reason: &str| refuse(path, reason, "make the link again with `ln -s`");
        let (size, kind) = self.header(oid, path)?;
        if kind != ObjectType::Blob || size == 0 || size > TARGET_LIMIT as u64 {
            return Err(odd("is a symbolic link to nothing that a path could name").into());
        }
        let blob = self.odb.read(oid).map_err(|error| failed(format!("read link {:?}", printable(path)))(error.message()))?;
        let target = std::str::from_utf8(blob.data()).map_err(|_| odd("is a symbolic link whose target is not UTF-8"))?;
        if target.contains(char::is_control) {
            return Err(odd("is a symbolic link whose target holds control characters").into());
        }
        Ok(target.to_owned())
    }

    /// Counts an entry, and takes it if there is still room.
    fn add(&mut self, path: &str, kind: Kind) -> Result<(), Stop> {
        let whole = |reason, hint: &str| Refusal { path: None, reason, hint: hint.to_owned() };
        let SourceLimits { entries, bytes, file_bytes, .. } = *self.limits;
        if self.found.len() as u64 >= entries {
            let hint = "remove what is not needed to run it (node_modules, build output), or raise the limit in the server file";
            return Err(whole(format!("holds more than {entries} files and directories"), hint).into());
        }
        if let Kind::File { size, .. } = &kind {
            if *size > file_bytes {
                let reason = format!("has {size} bytes; files of up to {file_bytes} bytes are deployed");
                return Err(refuse(path, reason, "keep large data in `data/`, not in the repository").into());
            }
            self.bytes = self.bytes.saturating_add(*size);
            if self.bytes > bytes {
                let hint = "keep large data in `data/`, not in the repository, or raise the limit in the server file";
                return Err(whole(format!("holds more than {bytes} bytes of files"), hint).into());
            }
        }
        self.found.push(Planned { path: path.to_owned(), kind });
        Ok(())
    }

    fn name<'n>(&self, name: &'n [u8], within: &str) -> Result<&'n str, Refusal> {
        let shown = String::from_utf8_lossy(name);
        let shown = if within.is_empty() { shown.into_owned() } else { format!("{within}/{shown}") };
        let rename = "rename it with `git mv`";
        let text = std::str::from_utf8(name).map_err(|_| refuse(&shown, "has a name that is not UTF-8", rename))?;
        if text.contains(char::is_control) {
            return Err(refuse(&shown, "has control characters in its name", rename));
        }
        if text.len() > NAME_LIMIT {
            return Err(refuse(&shown, format!("has a name of more than {NAME_LIMIT} bytes"), rename));
        }
        if matches!(text, "" | "." | "..") || text.contains('/') || is_dot_git(text) {
            return Err(refuse(&shown, "has a name that is not allowed in a repository", "make the commit again without it"));
        }
        Ok(text)
    }
}

/// Whether some file system or program takes `name` for `.git`.
fn is_dot_git(name: &str) -> bool {
    // HFS+ skips these characters when it compares names.
    let ignored = |c: char| matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let plain: String = name.chars().filter(|c| !ignored(*c)).collect::<String>().to_ascii_lowercase();
    // NTFS drops trailing dots and spaces, ends a name at a colon and knows short names.
    let plain = plain.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    plain == ".git" || plain == "git~1"
}

fn printable_root(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

fn submodule(path: &str) -> Refusal {
    refuse(
        path,
        "is a git submodule, whose files are in another repository; larder does not fetch it",
        format!(
            "put its files into this repository: `git rm --cached {0} && rm -rf {0}/.git && git add {0}`, or use `git subtree add`",
            printable(path)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::is_dot_git;

    #[test]
    fn disguises_of_dot_git_are_known() {
        for bad in [".git", ".GIT", ".Git ", ".git...", ".git . ", "GIT~1", ".g\u{200c}it", ".git::$INDEX_ALLOCATION"] {
            assert!(is_dot_git(bad), "{bad}");
        }
        for good in [".gitignore", ".github", "git", "x.git", "git~10"] {
            assert!(!is_dot_git(good), "{good}");
        }
    }
}
