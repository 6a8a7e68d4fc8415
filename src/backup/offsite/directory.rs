//! A store that is a directory of this machine, such as a mounted disk.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::store_files::{StoreFiles, TEMPORARY, is_leftover, too_short};

/// A directory. The directory itself must exist: a missing directory usually is a disk that is not mounted.
pub(super) struct DirectoryFiles {
    top: PathBuf,
    below: String,
}

impl DirectoryFiles {
    /// Opens the directory. Files are below `below`, which is created on the first write.
    pub(super) fn open(top: &str, below: &str) -> io::Result<DirectoryFiles> {
        if !fs::metadata(top)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory"));
        }
        Ok(DirectoryFiles { top: PathBuf::from(top), below: below.to_owned() })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.top.join(&self.below).join(path)
    }

    fn create_parents(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) else { return Ok(()) };
        if let Some(above) = parent.parent().filter(|above| above.starts_with(&self.top)) {
            self.create_parents(parent)?;
            match DirBuilder::new().mode(0o700).create(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => File::open(above)?.sync_all()?,
            }
        }
        Ok(())
    }

    /// Writes a temporary file, and gives it its name with `publish`.
    fn put(&self, path: &str, content: &[&[u8]], publish: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
        let path = self.at(path);
        self.create_parents(&path)?;
        let (parent, name) = (path.parent().unwrap_or(&self.top), path.file_name().unwrap_or_default());
        // Another server may write the same file at the same time. A killed worker leaves its temporary file.
        let temporary = parent.join(format!("{TEMPORARY}{}-{}", name.to_string_lossy(), std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let written = content.iter().try_for_each(|bytes| file.write_all(bytes)).and_then(|()| file.sync_all());
        let published = written.and_then(|()| publish(&temporary, &path));
        if published.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        published?;
        File::open(parent)?.sync_all()
    }
}

impl StoreFiles for DirectoryFiles {
    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let found = match fs::read_dir(self.at(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut files = Vec::new();
        for entry in found {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !entry.file_type()?.is_file() {
                continue;
            }
            if !name.starts_with(TEMPORARY) {
                files.push((name, entry.metadata()?.len()));
            } else if entry.metadata().is_ok_and(|found| is_leftover(found.mtime(), Timestamp::now())) {
                // A leftover only uses space. The next list repeats the removal.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(files)
    }

    fn read(&self, path: &str, part: Option<(u64, u64)>) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.at(path))?;
        let mut bytes = Vec::new();
        match part {
            None => {
                file.read_to_end(&mut bytes)?;
            }
            Some((offset, length)) => {
                file.seek(SeekFrom::Start(offset))?;
                let read = file.take(length).read_to_end(&mut bytes)? as u64;
                if read < length {
                    return Err(too_short(path, offset + read, offset + length));
                }
            }
        }
        Ok(bytes)
    }

    fn write(&self, path: &str, content: &[&[u8]]) -> io::Result<()> {
        self.put(path, content, |temporary, path| fs::rename(temporary, path))
    }

    fn create(&self, path: &str, content: &[&[u8]]) -> io::Result<()> {
        self.put(path, content, |temporary, path| {
            let linked = fs::hard_link(temporary, path);
            let _ = fs::remove_file(temporary);
            linked
        })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match fs::remove_file(self.at(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_written_read_listed_and_removed() {
        let top = tempfile::tempdir().unwrap();
        let files = DirectoryFiles::open(top.path().to_str().unwrap(), "shop/production").unwrap();
        assert!(files.list("data/00").unwrap().is_empty());
        files.write("data/00/a", &[b"one", b" two"]).unwrap();
        files.write("config", &[b"c"]).unwrap();
        assert_eq!(files.list("data/00").unwrap(), [(String::from("a"), 7)]);
        assert_eq!(files.list("").unwrap(), [(String::from("config"), 1)]);
        assert_eq!(files.read("data/00/a", None).unwrap(), b"one two");
        assert_eq!(files.read("data/00/a", Some((4, 3))).unwrap(), b"two");
        assert_eq!(files.read("data/00/a", Some((4, 4))).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(files.create("config", &[b"d"]).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(files.read("config", None).unwrap(), b"c");
        files.create("other", &[b"d"]).unwrap();
        assert_eq!(fs::read_dir(top.path().join("shop/production")).unwrap().count(), 3, "no temporary file stays");
        files.remove("data/00/a").unwrap();
        files.remove("data/00/a").unwrap();
        assert!(files.read("data/00/a", None).is_err());
        assert!(DirectoryFiles::open(top.path().join("missing").to_str().unwrap(), "a").is_err());
    }
}
