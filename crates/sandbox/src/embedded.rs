//! Unpacks files that are embedded in the program to a directory.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A file that is embedded in the program.
#[derive(Debug, Clone)]
pub struct EmbeddedFile {
    /// The path relative to the directory that the files are unpacked to.
    pub path: PathBuf,
    pub bytes: &'static [u8],
    pub executable: bool,
}

/// Unpacks `files` to the directory `target`. The files are first written to a temporary directory, which is then renamed to `target`, so
/// a partly written directory is never used. Only this process may write to the parent of `target`.
///
/// An existing directory is compared file by file, because two builds of one version can embed different files.
pub fn unpack(target: &Path, files: &[EmbeddedFile]) -> io::Result<()> {
    let same = |file: &EmbeddedFile| fs::read(target.join(&file.path)).is_ok_and(|bytes| bytes == file.bytes);
    if files.iter().all(same) {
        return Ok(());
    }
    let fresh = target.with_file_name(format!(".new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&fresh);
    let mut directories = fs::DirBuilder::new();
    directories.recursive(true).mode(0o755);
    directories.create(&fresh)?;
    for EmbeddedFile { path, bytes, executable } in files {
        let path = fresh.join(path);
        directories.create(path.parent().unwrap_or(&fresh))?;
        let mode = if *executable { 0o555 } else { 0o444 };
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    // If the process is interrupted here, the next call unpacks the files again, because files are missing.
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    fs::rename(&fresh, target)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn embedded_files_replace_files_of_another_build() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("1.0");
        let file = |path: &str, bytes, executable| EmbeddedFile { path: path.into(), bytes, executable };
        unpack(&lib, &[file("hooks/a", b"one", true), file("b/c/d", b"two", false)]).unwrap();
        assert_eq!(fs::read(lib.join("b/c/d")).unwrap(), b"two");
        assert_eq!(fs::metadata(lib.join("hooks/a")).unwrap().permissions().mode() & 0o777, 0o555);
        let before = fs::metadata(&lib).unwrap().modified().unwrap();
        unpack(&lib, &[file("hooks/a", b"one", true)]).unwrap();
        assert_eq!(fs::metadata(&lib).unwrap().modified().unwrap(), before, "the same files stay");
        unpack(&lib, &[file("hooks/a", b"new", true)]).unwrap();
        assert_eq!(fs::read(lib.join("hooks/a")).unwrap(), b"new");
        assert!(!lib.join("b").exists(), "files that are no longer embedded are removed");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "no partly written directory is left");
    }
}
