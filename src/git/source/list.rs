//! The list beside the exported tree: believed only if everything about it is as we would have written it.

use std::{fs, io, io::Write, path::Path};

use crate::model::SourceList;

/// The largest list that is read, in bytes.
const LIMIT: u64 = 256 << 20;

/// The directory of the exported tree, in an environment's `project/`.
pub const TREE: &str = "tree";
const LIST: &str = "list";
const DRAFT: &str = "list.new";

/// The list of the previous export; nothing if there is none or it is odd in any way.
pub fn read(place: &Path) -> Option<SourceList> {
    let path = place.join(LIST);
    if fs::symlink_metadata(&path).ok().filter(|meta| meta.is_file())?.len() > LIMIT {
        return None;
    }
    let list: SourceList = postcard::from_bytes(&fs::read(&path).ok()?).ok()?;
    let sorted = list.entries.iter().zip(list.entries.iter().skip(1)).all(|(one, next)| one.path < next.path);
    let sound = |path: &str| path.split('/').all(|name| !matches!(name, "" | "." | ".."));
    let lasting = list.boot.is_empty() || list.boot == boot();
    let known = list.format == SourceList::FORMAT && lasting && sorted && list.entries.iter().all(|entry| sound(&entry.path));
    known.then_some(list)
}

/// Says that the tree is what no list describes.
pub fn remove(place: &Path) -> io::Result<()> {
    for name in [LIST, DRAFT] {
        match fs::remove_file(place.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The boot of the machine; empty where the system does not say.
pub fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Writes the list and gives it its name. A push does not wait for the disk here: whatever a power cut leaves of tree and list,
/// it belongs to an earlier boot, and the next export starts from scratch.
pub fn write(place: &Path, list: &SourceList) -> io::Result<()> {
    let bytes = postcard::to_stdvec(list).map_err(io::Error::other)?;
    let draft = place.join(DRAFT);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&draft)?;
    file.write_all(&bytes)?;
    if list.boot.is_empty() {
        rustix::fs::syncfs(&file)?;
    }
    fs::rename(draft, place.join(LIST))
}
