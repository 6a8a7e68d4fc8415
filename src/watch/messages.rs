//! The messages between the server and the watch worker of a checkout. The server sends a [`WatchJob`] at the start, and a [`WatchOrder`] later; the
//! worker sends each [`WatchEvent`].

use std::io::{self, Read};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::model::ProcessType;

/// The maximum size of a message in bytes.
pub(super) const MAX_MESSAGE: usize = 1024 * 1024;

/// The parameters of the watch: the ignored paths, the patterns of the processes, and the inputs of the build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchJob {
    /// The persistent paths of the recipe, which the application writes. They never count.
    pub data: Vec<String>,
    /// The process types.
    pub processes: Vec<WatchedProcess>,
    /// Patterns, as in `.gitignore`, of the files from which the build is made. `None` selects every file.
    pub inputs: Option<Vec<String>>,
    /// Files that were changed since this time count as saved when the watch starts, in milliseconds since the Unix epoch.
    pub since: Option<i64>,
}

/// A process type that saved files restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedProcess {
    /// The type.
    pub kind: ProcessType,
    /// The patterns of the files that restart the process. `None` selects every file.
    pub watch: Option<Vec<String>>,
}

/// A later message of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchOrder {
    /// Replaces the job.
    Replace(WatchJob),
    /// Reports files as if they had just been saved. They were reported earlier, at a time at which the server could not act.
    Again(SavedPaths),
    /// Reports all changes up to now, and then [`WatchEvent::Flushed`] with the same number.
    Flush(u32),
}

/// Paths that were saved, relative to the checkout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPaths {
    /// The paths, at most [`SavedPaths::MAX`].
    pub paths: Vec<String>,
    /// The number of further paths.
    pub more: usize,
    /// True if changes were lost, so that any file may have changed.
    pub are_lost: bool,
}

impl SavedPaths {
    /// The maximum number of paths in a message.
    pub const MAX: usize = 200;

    /// Returns true if nothing was saved.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.more == 0 && !self.are_lost
    }

    /// Adds other paths.
    pub fn merge(&mut self, other: SavedPaths) {
        for path in other.paths {
            match self.paths.len() < SavedPaths::MAX {
                _ if self.paths.contains(&path) => {}
                true => self.paths.push(path),
                false => self.more = self.more.saturating_add(1),
            }
        }
        self.more = self.more.saturating_add(other.more);
        self.are_lost |= other.are_lost;
    }
}

/// The effect of saved files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFiles {
    /// The files.
    pub saved: SavedPaths,
    /// The process types that must start again.
    pub restart: Vec<ProcessType>,
    /// True if the build must run.
    pub build: bool,
    /// The first saved file of the recipe.
    pub recipe: Option<String>,
    /// The time of the first change, in milliseconds since the Unix epoch.
    pub at: i64,
}

/// A message of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchEvent {
    /// All directories are watched.
    Ready,
    /// Files were saved.
    Saved(SavedFiles),
    /// All earlier changes were reported.
    Flushed(u32),
    /// The checkout cannot be watched. The worker exits.
    Failed {
        /// The reason.
        why: String,
        /// The remedy.
        hint: Option<String>,
    },
}

/// Encodes a message: its length as four bytes, and its content.
pub(super) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let content = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(content.len()).ok().filter(|_| content.len() <= MAX_MESSAGE);
    let length =
        length.ok_or_else(|| io::Error::other(format!("a message has {} bytes (limit {MAX_MESSAGE})", content.len())))?;
    Ok([&length.to_le_bytes()[..], &content].concat())
}

/// Returns the length of a message from its first four bytes.
pub(super) fn length(head: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    match length <= MAX_MESSAGE {
        true => Ok(length),
        false => Err(io::Error::other(format!("a message has {length} bytes (limit {MAX_MESSAGE})"))),
    }
}

/// Decodes the content of a message.
pub(super) fn decode<M: DeserializeOwned>(content: &[u8]) -> io::Result<M> {
    postcard::from_bytes(content).map_err(io::Error::other)
}

/// Reads one message. Returns `None` at the end of the pipe.
pub(super) fn read<M: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<M>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut content = vec![0; length(head)?];
    from.read_exact(&mut content)?;
    decode(&content).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_read_back_and_a_large_one_is_refused() {
        let order = WatchOrder::Flush(7);
        let bytes = encode(&order).unwrap();
        assert_eq!(read::<WatchOrder>(&mut &bytes[..]).unwrap(), Some(order));
        assert_eq!(read::<WatchOrder>(&mut &[][..]).unwrap(), None);
        assert!(read::<WatchOrder>(&mut &bytes[..4]).is_err());
        assert!(read::<WatchOrder>(&mut &[255, 255, 255, 255, 0][..]).unwrap_err().to_string().contains("limit"));
        let large = SavedPaths { paths: vec!["x".repeat(MAX_MESSAGE)], ..SavedPaths::default() };
        assert!(encode(&WatchOrder::Again(large)).is_err());
    }

    #[test]
    fn merged_paths_are_counted_beyond_the_limit() {
        let mut all = SavedPaths::default();
        assert!(all.is_empty());
        for part in 0..3 {
            let paths = (0..100).map(|number| format!("{part}/{number}")).collect();
            all.merge(SavedPaths { paths, ..SavedPaths::default() });
        }
        all.merge(SavedPaths { paths: vec![String::from("0/0")], more: 1, are_lost: false });
        assert_eq!((all.paths.len(), all.more, all.are_lost), (200, 101, false));
    }
}
