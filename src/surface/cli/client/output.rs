//! The file on the caller's machine that a command such as `larder backup export --output FILE` writes.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::control::{CommandError, ErrorKind};

/// A new file that gets its name only when it is complete. Dropping this value deletes an incomplete file.
pub(super) struct OutputFile {
    pub(super) file: fs::File,
    part: PathBuf,
    path: PathBuf,
}

impl OutputFile {
    pub(super) fn create(path: &Path) -> Result<OutputFile, CommandError> {
        let refused = |why: String| CommandError::new(ErrorKind::Refused, format!("cannot write {}: {why}", path.display()));
        if path.symlink_metadata().is_ok() {
            return Err(refused(String::from("the file exists")).hint("name a new file, or remove the existing file first"));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        // The archive contains private data, so only the caller may read the file.
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        let file = file.map_err(|error| refused(format!("cannot create {}: {error}", Path::new(&part).display())))?;
        Ok(OutputFile { file, part: part.into(), path: path.to_owned() })
    }

    /// Makes the file durable and gives it its name.
    pub(super) fn keep(&self) -> Result<(), CommandError> {
        self.file.sync_all().map_err(|error| self.failed(&error))?;
        // A hard link does not replace a file that was created meanwhile.
        fs::hard_link(&self.part, &self.path).map_err(|error| self.failed(&error))
    }

    pub(super) fn failed(&self, error: &io::Error) -> CommandError {
        CommandError::new(ErrorKind::Internal, format!("cannot write {}: {error}", self.path.display()))
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}
