//! What the keeper remembers of a process for a server that has just started.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{EnvId, ProcessType, ReleaseId, Slot};

/// The identity of an application process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The environment.
    pub environment: EnvId,
    /// The slot that it runs in.
    pub slot: Slot,
    /// The release that it runs.
    pub release: ReleaseId,
    /// Its type.
    pub process: ProcessType,
    /// Which one of its type, from 1.
    pub index: u32,
    /// The port that it was told to listen on.
    pub port: Option<u16>,
}

impl Label {
    /// Its name among the processes of its slot, such as `web.1`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.process, self.index)
    }

    /// A key that sorts `web.2` before `web.10`.
    pub fn order(&self) -> (String, u32, &'static str) {
        (self.process.to_string(), self.index, self.slot.as_str())
    }

    /// For the keeper.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// From the keeper; nothing where it was not one of ours.
    pub fn from_bytes(bytes: &[u8]) -> Option<Label> {
        postcard::from_bytes(bytes).ok()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} in {}", self.process, self.index, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_survives_the_keeper() {
        let label = Label {
            environment: EnvId(3),
            slot: Slot::Green,
            release: ReleaseId::new(jiff::Timestamp::UNIX_EPOCH),
            process: "web".parse().unwrap(),
            index: 2,
            port: Some(20_001),
        };
        let bytes = label.to_bytes();
        assert!(bytes.len() <= 1024);
        assert_eq!(Label::from_bytes(&bytes), Some(label));
        assert_eq!(Label::from_bytes(b"nonsense"), None);
    }
}
