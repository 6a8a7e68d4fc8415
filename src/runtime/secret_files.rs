//! Secrets as files: they are on the private tmpfs of one process, and end with the process.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{host::is_sandboxed, model::ConfigVariables};

/// The variable with the directory of the files.
pub const SECRETS_DIR: &str = "LARDER_SECRETS";

/// The directory of the files in the sandbox, on a tmpfs of the process and its children.
const DIRECTORY: &str = "/dev/shm/secrets";

/// The secret files of a process. `Debug` shows names only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFiles {
    /// The contents, by the name of the file.
    pub contents: ConfigVariables,
    /// The modes, by the name of the file.
    pub modes: BTreeMap<String, u32>,
}

impl SecretFiles {
    /// Writes the files as the user of the process. Returns their directory; `None` without files.
    ///
    /// # Errors
    /// The machine has no sandbox, so that the files would be visible to other processes and stay after the end of the process.
    pub(super) fn write(&self) -> io::Result<Option<PathBuf>> {
        if self.contents.is_empty() {
            return Ok(None);
        }
        if !is_sandboxed() {
            return Err(io::Error::other(
                "cannot write the secret files: this machine allows no namespaces, and without them there is no private tmpfs",
            ));
        }
        self.write_to(Path::new(DIRECTORY)).map(Some)
    }

    fn write_to(&self, directory: &Path) -> io::Result<PathBuf> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for (name, content) in self.contents.iter() {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mode = self.modes.get(name).copied().unwrap_or(0o400);
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?.write_all(content)?;
        }
        Ok(directory.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_have_their_modes_in_a_private_directory() {
        let temp = tempfile::tempdir().unwrap();
        let files = SecretFiles {
            contents: [(String::from("tls.key"), b"hunter2".to_vec()), (String::from("b"), b"2".to_vec())].into_iter().collect(),
            modes: BTreeMap::from([(String::from("tls.key"), 0o440)]),
        };
        let directory = temp.path().join("secrets");
        for _ in 0..2 {
            assert_eq!(files.write_to(&directory).unwrap(), directory);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("tls.key")), mode(&directory.join("b"))), (0o700, 0o440, 0o400));
        assert_eq!(fs::read(directory.join("tls.key")).unwrap(), b"hunter2");
        assert!(!format!("{files:?}").contains("hunter2"));
    }
}
