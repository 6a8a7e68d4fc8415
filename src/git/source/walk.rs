//! Plans the export of a commit's tree and checks all entries. The walk stops at the first exceeded limit and reads no content of files.
//! The entries of unchanged directories come from the list of the previous export, which has checked the entries.

use git2::{ObjectType, Odb, Oid, Repository};

use super::job::{ExportStop, SourceLimits, SourceRefusal, failed};
use crate::model::{Digest, SourceEntry, SourceKind, sanitise_reason};

/// The maximum size of a tree object, in bytes. A tree of a hundred thousand entries with the longest names is smaller.
const MAX_TREE: usize = 32 << 20;
/// The maximum length of a symlink's target, in bytes (`PATH_MAX` of Linux, without the NUL).
const MAX_TARGET: usize = 4095;
/// The maximum length of a name, in bytes (`NAME_MAX` of Linux).
const MAX_NAME: usize = 255;

const DIRECTORY: i32 = 0o040_000;
const LINK: i32 = 0o120_000;
const GITLINK: i32 = 0o160_000;

/// An entry of the planned tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedEntry {
    /// The path from the root of the tree.
    pub path: String,
    /// The kind of the entry, with its content.
    pub kind: PlannedKind,
}

/// The kind of a planned entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// The id of the blob with the file's content.
        oid: Oid,
        /// The size in bytes.
        size: u64,
        /// True if the file is executable.
        executable: bool,
        /// The digest of the content, if the previous export has computed it.
        digest: Option<Digest>,
    },
    /// A symbolic link.
    Link {
        /// The target of the link.
        target: String,
    },
}

struct Walk<'a> {
    repository: &'a Repository,
    odb: Odb<'a>,
    limits: &'a SourceLimits,
    known: &'a [SourceEntry],
    found: Vec<PlannedEntry>,
    bytes: u64,
}

/// Returns all entries of `tree`, sorted by path. `known` contains the entries and the git tree of the previous export.
pub fn walk(
    repository: &Repository,
    tree: Oid,
    known: Option<(&[SourceEntry], Oid)>,
    limits: &SourceLimits,
) -> Result<Vec<PlannedEntry>, ExportStop> {
    let odb = repository.odb().map_err(|error| failed("open the objects")(error.message()))?;
    let (entries, known_tree) = known.map_or((&[][..], None), |(entries, tree)| (entries, Some(tree)));
    let mut walk = Walk { repository, odb, limits, known: entries, found: Vec::new(), bytes: 0 };
    walk.directory(tree, known_tree, "", 0)?;
    let mut found = walk.found;
    found.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    if let Some((twice, _)) = found.iter().zip(found.iter().skip(1)).find(|(one, next)| one.path == next.path) {
        return Err(refuse(&twice.path, "exists twice", "create the commit again with a current version of git").into());
    }
    Ok(found)
}

fn refuse(path: &str, reason: impl Into<String>, hint: impl Into<String>) -> SourceRefusal {
    SourceRefusal { path: Some(printable(path)), reason: reason.into(), hint: hint.into() }
}

fn printable(path: &str) -> String {
    sanitise_reason(path)
}

impl Walk<'_> {
    fn directory(&mut self, tree: Oid, known: Option<Oid>, path: &str, depth: usize) -> Result<(), ExportStop> {
        if known == Some(tree) {
            return self.unchanged(path);
        }
        if depth > self.limits.depth {
            let reason = format!("is deeper than {} directories", self.limits.depth);
            return Err(refuse(path, reason, "move the files up to fewer levels of directories").into());
        }
        let doing = || format!("read directory {:?} of the commit", printable_root(path));
        let (size, _) = self.odb.read_header(tree).map_err(|error| failed(doing())(error.message()))?;
        if size > MAX_TREE {
            return Err(refuse(printable_root(path), "has too many files", "spread the files over several directories").into());
        }
        let tree = self.repository.find_tree(tree).map_err(|error| failed(doing())(error.message()))?;
        let known = known.and_then(|known| self.repository.find_tree(known).ok());
        for entry in &tree {
            let name = self.name(entry.name_bytes(), path)?;
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            if below.len() > self.limits.path_bytes {
                let reason = format!("has a path of more than {} bytes", self.limits.path_bytes);
                return Err(refuse(&below, reason, "shorten the path").into());
            }
            // Mode bits besides the type and the executable bits, such as set-user-id, are ignored. git itself never writes such bits.
            let mode = entry.filemode_raw();
            match mode & 0o170_000 {
                DIRECTORY => {
                    self.add(&below, PlannedKind::Dir)?;
                    let before = known.as_ref().and_then(|known| known.get_name_bytes(entry.name_bytes()));
                    let before = before.filter(|before| before.kind() == Some(ObjectType::Tree)).map(|before| before.id());
                    self.directory(entry.id(), before, &below, depth + 1)?;
                }
                LINK => {
                    let target = self.target(entry.id(), &below)?;
                    self.add(&below, PlannedKind::Link { target })?;
                }
                GITLINK => return Err(submodule(&below).into()),
                _ => self.file(entry.id(), mode & 0o111 != 0, below)?,
            }
        }
        Ok(())
    }

    /// Adds the entries of a directory that has not changed since the previous export.
    fn unchanged(&mut self, path: &str) -> Result<(), ExportStop> {
        let known = self.known;
        let (from, to) = if path.is_empty() {
            (0, known.len())
        } else {
            // The paths below a directory sort between `path/` and `path0`, because `0` is the character after `/`.
            let (first, after) = (format!("{path}/"), format!("{path}0"));
            (known.partition_point(|entry| entry.path < first), known.partition_point(|entry| entry.path < after))
        };
        for entry in known.get(from..to).unwrap_or_default() {
            let kind = match &entry.kind {
                SourceKind::Dir => PlannedKind::Dir,
                SourceKind::Link { target } => PlannedKind::Link { target: target.clone() },
                SourceKind::File { size, digest, executable, blob } => PlannedKind::File {
                    oid: Oid::from_bytes(blob)
                        .map_err(|error| failed("read the list of the previous export")(error.message()))?,
                    size: *size,
                    executable: *executable,
                    digest: Some(*digest),
                },
            };
            self.add(&entry.path, kind)?;
        }
        Ok(())
    }

    fn file(&mut self, oid: Oid, executable: bool, path: String) -> Result<(), ExportStop> {
        if let Some((size, digest)) = self.known_file(oid, &path) {
            return self.add(&path, PlannedKind::File { oid, size, executable, digest: Some(digest) });
        }
        let (size, kind) = self.header(oid, &path)?;
        if kind != ObjectType::Blob {
            return Err(refuse(&path, "is not a file", "create the commit again with a current version of git").into());
        }
        self.add(&path, PlannedKind::File { oid, size, executable, digest: None })
    }

    /// Returns the size and the digest of a file, if the previous export had the same content at the same path.
    fn known_file(&self, oid: Oid, path: &str) -> Option<(u64, Digest)> {
        let at = self.known.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
        match &self.known.get(at)?.kind {
            SourceKind::File { size, digest, blob, .. } if blob.as_slice() == oid.as_bytes() => Some((*size, *digest)),
            _ => None,
        }
    }

    fn header(&self, oid: Oid, path: &str) -> Result<(u64, ObjectType), ExportStop> {
        let doing = || format!("read {:?} of the commit", printable(path));
        let (size, kind) = self.odb.read_header(oid).map_err(|error| failed(doing())(error.message()))?;
        Ok((size as u64, kind))
    }

    fn target(&self, oid: Oid, path: &str) -> Result<String, ExportStop> {
        let refused = |reason: &str| refuse(path, reason, "create the link again with `ln -s`");
        let (size, kind) = self.header(oid, path)?;
        if kind != ObjectType::Blob || size == 0 || size > MAX_TARGET as u64 {
            return Err(refused("is a symbolic link with an empty or overlong target").into());
        }
        let blob = self.odb.read(oid).map_err(|error| failed(format!("read link {:?}", printable(path)))(error.message()))?;
        let target = std::str::from_utf8(blob.data()).map_err(|_| refused("is a symbolic link whose target is not UTF-8"))?;
        if target.contains(char::is_control) {
            return Err(refused("is a symbolic link whose target has control characters").into());
        }
        Ok(target.to_owned())
    }

    /// Adds an entry. Refuses an entry that exceeds a limit.
    fn add(&mut self, path: &str, kind: PlannedKind) -> Result<(), ExportStop> {
        let whole = |reason, hint: &str| SourceRefusal { path: None, reason, hint: hint.to_owned() };
        let SourceLimits { entries, bytes, file_bytes, .. } = *self.limits;
        if self.found.len() as u64 >= entries {
            let hint = "remove files that the application does not need at run time (node_modules, build output), or raise the limit in the server file";
            return Err(whole(format!("has more than {entries} files and directories"), hint).into());
        }
        if let PlannedKind::File { size, .. } = &kind {
            if *size > file_bytes {
                let reason = format!("has {size} bytes (at most {file_bytes} are allowed)");
                return Err(refuse(path, reason, "keep large data in `data/`, not in the repository").into());
            }
            self.bytes = self.bytes.saturating_add(*size);
            if self.bytes > bytes {
                let hint = "keep large data in `data/`, not in the repository, or raise the limit in the server file";
                return Err(whole(format!("has more than {bytes} bytes of files"), hint).into());
            }
        }
        self.found.push(PlannedEntry { path: path.to_owned(), kind });
        Ok(())
    }

    fn name<'n>(&self, name: &'n [u8], within: &str) -> Result<&'n str, SourceRefusal> {
        let shown = String::from_utf8_lossy(name);
        let shown = if within.is_empty() { shown.into_owned() } else { format!("{within}/{shown}") };
        let rename = "rename the file or directory with `git mv`";
        let text = std::str::from_utf8(name).map_err(|_| refuse(&shown, "has a name that is not UTF-8", rename))?;
        if text.contains(char::is_control) {
            return Err(refuse(&shown, "has control characters in its name", rename));
        }
        if text.len() > MAX_NAME {
            return Err(refuse(&shown, format!("has a name of more than {MAX_NAME} bytes"), rename));
        }
        if matches!(text, "" | "." | "..") || text.contains('/') || is_dot_git(text) {
            return Err(refuse(
                &shown,
                "has a name that is not allowed in a repository",
                "create the commit again without this entry",
            ));
        }
        Ok(text)
    }
}

/// Returns true if a file system or a program could interpret `name` as `.git`.
fn is_dot_git(name: &str) -> bool {
    // HFS+ ignores these characters when it compares names.
    let ignored = |c: char| matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let plain: String = name.chars().filter(|c| !ignored(*c)).collect::<String>().to_ascii_lowercase();
    // NTFS ignores trailing dots and spaces, ends a name at a colon, and has short names such as `GIT~1`.
    let plain = plain.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    plain == ".git" || plain == "git~1"
}

fn printable_root(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

fn submodule(path: &str) -> SourceRefusal {
    refuse(
        path,
        "is a git submodule; its files are in another repository, which larder does not fetch",
        format!(
            "put the files of the submodule into this repository: `git rm --cached {0} && rm -rf {0}/.git && git add {0}`, or use `git subtree add`",
            printable(path)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::is_dot_git;

    #[test]
    fn name_equivalent_to_dot_git_is_rejected() {
        for bad in [".git", ".GIT", ".Git ", ".git...", ".git . ", "GIT~1", ".g\u{200c}it", ".git::$INDEX_ALLOCATION"] {
            assert!(is_dot_git(bad), "{bad}");
        }
        for good in [".gitignore", ".github", "git", "x.git", "git~10"] {
            assert!(!is_dot_git(good), "{good}");
        }
    }
}
