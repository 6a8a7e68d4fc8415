//! Releases that a person wants to keep: `pins.json` of an environment.

use std::{collections::BTreeMap, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    host::files,
    model::{ReleaseId, UserName},
};

/// Who pinned a release, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Who.
    pub by: UserName,
    /// When.
    pub at: Timestamp,
}

/// The pinned releases of an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pins(BTreeMap<ReleaseId, Pin>);

/// A file above this size is not ours.
const BYTES_MAX: u64 = 4 << 20;

impl Pins {
    /// Reads the file at `path`; nothing is pinned where there is none.
    pub fn read(path: &Path) -> io::Result<Pins> {
        if !path.exists() {
            return Ok(Pins::default());
        }
        let bytes = files::read_limited(path, BYTES_MAX).map_err(io::Error::other)?;
        serde_json::from_slice(&bytes).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    }

    /// The pin of a release.
    pub fn get(&self, release: ReleaseId) -> Option<&Pin> {
        self.0.get(&release)
    }

    /// The pinned releases.
    pub fn releases(&self) -> Vec<ReleaseId> {
        self.0.keys().copied().collect()
    }

    /// Pins or frees a release, and writes the file; when this returns, it survives a power failure. Says whether that changed
    /// anything.
    pub fn change(path: &Path, release: ReleaseId, pin: Option<Pin>) -> io::Result<bool> {
        let mut pins = Pins::read(path)?;
        let changed = match pin {
            Some(_) if pins.0.contains_key(&release) => false,
            Some(pin) => pins.0.insert(release, pin).is_none(),
            None => pins.0.remove(&release).is_some(),
        };
        if changed {
            let mut bytes = serde_json::to_vec_pretty(&pins).map_err(io::Error::other)?;
            bytes.push(b'\n');
            files::write_atomic(path, &bytes, 0o644).map_err(io::Error::other)?;
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_stays_until_it_is_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pins.json");
        let release = ReleaseId::new(Timestamp::now());
        let pin = || Some(Pin { by: "ann".parse().unwrap(), at: Timestamp::now() });
        assert!(Pins::change(&path, release, pin()).unwrap());
        assert!(!Pins::change(&path, release, pin()).unwrap());
        assert_eq!(Pins::read(&path).unwrap().releases(), [release]);
        assert!(Pins::change(&path, release, None).unwrap());
        assert!(!Pins::change(&path, release, None).unwrap());
        assert_eq!(Pins::read(&path).unwrap(), Pins::default());
    }
}
