//! The section `space:` of the server file: the disk space that a project may use.

use super::{
    keys::{
        Fallback::{Is, Says},
        KeyRow,
    },
    quantity::ByteSize,
};

use crate::model::StorageKind;

/// The limits of the disk space of projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceConfig {
    /// The limit of each project that has no limit of its own; `None` without a limit.
    pub limit: Option<ByteSize>,
    /// True if the limit of a project is raised for a deployment that needs more space.
    pub enlarge: bool,
    /// The maximum to which a limit is raised automatically.
    pub ceiling: Option<ByteSize>,
    /// The kind of file system that each new project gets for itself; `None` for the file system of larder's root, with a project quota if the
    /// file system has project quotas.
    pub storage: Option<StorageKind>,
    /// The size of the file that holds disk space for larder; `None` without such a file.
    pub ballast: Option<ByteSize>,
}

impl Default for SpaceConfig {
    fn default() -> SpaceConfig {
        SpaceConfig { limit: None, enlarge: false, ceiling: None, storage: None, ballast: Some(ByteSize::mebibytes(640)) }
    }
}

/// The keys of the section.
pub(super) const SPACE_KEYS: &[KeyRow<SpaceConfig>] = &[
    KeyRow::value(
        "limit",
        "The maximum disk space of a project: repository, releases, builds, data, restore points and logs of all environments. `larder project enlarge` and `larder project trim` set another limit for one project.",
        Says("no limit"),
        "20G",
        |reader, node, key, space| space.limit = reader.size(node, key),
    ),
    KeyRow::value(
        "enlarge",
        "off, or auto: the limit of a project is raised up to `ceiling` for a deployment that needs more space.",
        Is("off"),
        "auto",
        |reader, node, key, space| {
            space.enlarge = reader.choice(node, key, &[("off", false), ("auto", true)]).unwrap_or_default();
        },
    ),
    KeyRow::value(
        "ceiling",
        "The maximum to which `enlarge: auto` raises a limit. Without a ceiling, no limit is raised.",
        Says("no automatic change"),
        "50G",
        |reader, node, key, space| space.ceiling = reader.size(node, key),
    ),
    KeyRow::value(
        "storage",
        "shared, or ext4 or xfs: each new project gets a file system of its own in a file of the size `limit`. Existing projects stay where they are. `shared` uses project quotas if the file system of the root has them.",
        Is("shared"),
        "ext4",
        |reader, node, key, space| {
            let kinds = [("shared", None), ("ext4", Some(StorageKind::Ext4)), ("xfs", Some(StorageKind::Xfs))];
            space.storage = reader.choice(node, key, &kinds).unwrap_or_default();
        },
    ),
    KeyRow::value(
        "ballast",
        "The size of a file that holds disk space for larder. If less than half of `limits.disk_reserve` is free, larder deletes the file, so that pushes and deployments of other projects go on. Use a larger size than `limits.disk_reserve`, or `off`.",
        Is("640M"),
        "640M",
        |reader, node, key, space| {
            let parse = |text: &str| if text == "off" { Ok(None) } else { text.parse().map(Some) };
            if let Some(ballast) = reader.value(node, key, "a size such as 640M, or off", parse) {
                space.ballast = ballast;
            }
        },
    ),
];
