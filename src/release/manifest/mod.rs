//! Manifests as files: their fields before the archive is written (`head.rs`), their text (`encode.rs`), their index (`index.rs`), and the
//! readers that check manifests (`read.rs`).
//!
//! The type of a parsed manifest is [`Manifest`](crate::model::Manifest).

pub mod encode;
mod head;
pub mod index;
mod read;

pub use head::Head;
pub use index::{MAX_MANIFEST, SUFFIX};
pub use read::{from_bytes, head, parse, parse_known, read};
pub(super) use read::{other_format, parse_both};
