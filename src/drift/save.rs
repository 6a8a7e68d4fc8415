//! Writes the files of a patch: a diff of text files for `git apply`, and an archive of the changed files that the diff does not contain.

use std::{
    fs::File,
    io::{Read, Write},
};

use larder_archive::{self as archive, Item};

use super::{Drift, Drifted, SavedAs, whole};
use crate::{
    host::files::{Confined, FileError},
    model::{ArchiveInfo, Digest, EntryKind},
    release::ReleaseError,
};

/// The maximum size of a file that is saved as a diff, in bytes.
const MAX_TEXT: u64 = 1 << 20;
/// The maximum size of a file that is saved as a whole, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// The maximum total size of the files that a patch contains as a whole, in bytes.
const MAX_TOTAL: u64 = 1 << 30;

/// Writes the unexpected changes of `drift` to the diff `text` and to `archive`, and records in `drift` how each change is saved. `tree` is
/// the installed tree of the release. Returns the frames of the archive, or `None` if no file is saved as a whole.
pub fn write(
    app: &Confined,
    tree: &Confined,
    drift: &mut Drift,
    text: &File,
    archive: &File,
) -> Result<Option<ArchiveInfo>, ReleaseError> {
    let mut out = std::io::BufWriter::new(text);
    let (mut at, mut left) = (0_u64, MAX_TOTAL);
    let failed = |e: std::io::Error| FileError::Io { doing: "write", path: "the patch".into(), source: e };
    for change in drift.changes.iter_mut().filter(|change| change.noise.is_none() && change.odd.is_none()) {
        if let Some(piece) = differ(app, tree, change) {
            // Only git reads the header. larder reads only the text after the header.
            let header = header(change);
            out.write_all(header.as_bytes()).and_then(|()| out.write_all(piece.as_bytes())).map_err(failed)?;
            let length = piece.len() as u64;
            if change.now.is_some() {
                change.kept = SavedAs::Text { at: at + header.len() as u64, length };
            }
            at += header.len() as u64 + length;
        }
        if change.kept != SavedAs::No {
            continue;
        }
        change.kept = match (&change.was, &change.now) {
            (Some(EntryKind::File { digest: was, .. }), Some(EntryKind::File { digest, .. })) if was == digest => SavedAs::Listed,
            (_, Some(EntryKind::File { size, .. })) if *size <= MAX_FILE.min(left) => {
                left -= size;
                SavedAs::Whole
            }
            (_, Some(EntryKind::File { size, .. })) => {
                let (file, all) = (MAX_FILE >> 20, MAX_TOTAL >> 20);
                change.odd = Some(format!(
                    "cannot be saved: the file has {} MiB (limit {file} MiB per file, {all} MiB per patch)",
                    size >> 20
                ));
                SavedAs::No
            }
            _ => SavedAs::Listed,
        };
    }
    out.flush().map_err(failed)?;
    let entries = whole(&drift.changes);
    if entries.is_empty() {
        return Ok(None);
    }
    let items: Vec<Item> = entries.iter().map(Item::from).collect();
    let written = archive::write(app, &items, None, archive, 1, u64::MAX);
    Ok(Some(written.map_err(|source| ReleaseError::PatchArchive { doing: "write", source })?.info))
}

/// Returns the diff of a changed, added or removed text file. Returns `None` if the old or the new version is not a text file, or if both
/// versions have equal text.
fn differ(app: &Confined, tree: &Confined, change: &Drifted) -> Option<String> {
    let old = match &change.was {
        Some(EntryKind::File { size, digest, .. }) => text(tree, &change.path, *size, digest)?,
        _ => String::new(),
    };
    let new = match &change.now {
        Some(EntryKind::File { size, digest, .. }) => text(app, &change.path, *size, digest)?,
        Some(_) => return None,
        None if matches!(change.was, Some(EntryKind::File { .. })) => String::new(),
        None => return None,
    };
    if old == new {
        return None;
    }
    let side = |letter: char, there: bool| if there { named(letter, &change.path) } else { String::from("/dev/null") };
    let was_file = matches!(change.was, Some(EntryKind::File { .. }));
    let mut options = diffy::DiffOptions::new();
    options.set_original_filename(side('a', was_file)).set_modified_filename(side('b', change.now.is_some()));
    Some(options.create_patch(&old, &new).to_string())
}

/// Returns the header for the diff of a file, in the format of git.
fn header(change: &Drifted) -> String {
    let mut header = format!("diff --git {} {}\n", named('a', &change.path), named('b', &change.path));
    let mode = |executable: bool| if executable { "100755" } else { "100644" };
    match (&change.was, &change.now) {
        (Some(EntryKind::File { executable: was, .. }), Some(EntryKind::File { executable, .. })) if was != executable => {
            header.push_str(&format!("old mode {}\nnew mode {}\n", mode(*was), mode(*executable)));
        }
        (None, Some(EntryKind::File { executable, .. })) => header.push_str(&format!("new file mode {}\n", mode(*executable))),
        (Some(EntryKind::File { executable, .. }), None) => {
            header.push_str(&format!("deleted file mode {}\n", mode(*executable)))
        }
        _ => {}
    }
    header
}

fn named(side: char, path: &str) -> String {
    format!("{side}/{path}")
}

/// Reads a text file. Returns `None` if the file is larger than `MAX_TEXT`, cannot be read, does not have the digest `digest`, or is not
/// text.
pub fn text(root: &Confined, path: &str, size: u64, digest: &Digest) -> Option<String> {
    if size > MAX_TEXT {
        return None;
    }
    let mut bytes = Vec::new();
    root.cursor().open(path).ok()?.take(MAX_TEXT + 1).read_to_end(&mut bytes).ok()?;
    if Digest::of(&bytes) != *digest || bytes.contains(&0) {
        return None;
    }
    String::from_utf8(bytes).ok()
}
