//! Manifests as files: their text (`encode.rs`), their index (`index.rs`), and the readers that check them (`read.rs`).
//!
//! The value itself is [`Manifest`](crate::model::Manifest).

pub mod encode;
mod head;
pub mod index;
mod read;

pub use head::Head;
pub use index::{MAX_MANIFEST, SUFFIX};
pub use read::{from_bytes, head, parse, parse_known, read};
pub(super) use read::{other_format, parse_both};
