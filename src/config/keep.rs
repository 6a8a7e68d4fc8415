//! The rules by which restore points and their copies are removed: the sections `backup.keep` and `backup.offsite[].keep` of the server file.

use serde::{Deserialize, Serialize};

use super::{
    keys::{
        self,
        Fallback::{Is, Says},
        KeyRow, Mapping,
    },
    quantity::ByteSize,
    reader::ConfigReader,
    yaml::Node,
};

/// The rules by which restore points are removed. A restore point stays if at least one rule selects this restore point, unless the limit
/// `bytes` is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupKeep {
    /// The number of newest restore points.
    pub last: u32,
    /// The number of days of which the newest restore point stays. Days without a restore point do not count.
    pub daily: u32,
    /// The number of weeks of which the newest restore point stays. Weeks without a restore point do not count.
    pub weekly: u32,
    /// The number of months of which the newest restore point stays. Months without a restore point do not count.
    pub monthly: u32,
    /// The number of years of which the newest restore point stays. Years without a restore point do not count.
    pub yearly: u32,
    /// The maximum disk usage of all restore points of one environment. Above this limit, the oldest restore points are removed, even if a
    /// rule selects them.
    pub bytes: Option<ByteSize>,
}

impl Default for BackupKeep {
    fn default() -> BackupKeep {
        BackupKeep { last: 3, daily: 7, weekly: 4, monthly: 6, yearly: 0, bytes: None }
    }
}

/// The maximum number of restore points that one rule selects.
const MAX_KEPT: u64 = 10_000;

/// The keys of the rules. The last key is the limit for the disk of this machine.
pub(super) const KEEP_KEYS: &[KeyRow<BackupKeep>] = &[
    KeyRow::value("last", "The number of newest restore points.", Is("3"), "3", |reader, node, key, keep| {
        set(&mut keep.last, number(reader, node, key, 0, MAX_KEPT));
    }),
    KeyRow::value(
        "daily",
        "The number of days, weeks, months and years of which the newest restore point stays.",
        Is("7"),
        "7",
        |reader, node, key, keep| set(&mut keep.daily, number(reader, node, key, 0, MAX_KEPT)),
    ),
    KeyRow::value("weekly", "", Is("4"), "4", |reader, node, key, keep| {
        set(&mut keep.weekly, number(reader, node, key, 0, MAX_KEPT));
    }),
    KeyRow::value("monthly", "", Is("6"), "6", |reader, node, key, keep| {
        set(&mut keep.monthly, number(reader, node, key, 0, MAX_KEPT));
    }),
    KeyRow::value("yearly", "", Is("0"), "0", |reader, node, key, keep| {
        set(&mut keep.yearly, number(reader, node, key, 0, MAX_KEPT));
    }),
    KeyRow::value(
        "bytes",
        "The maximum disk usage of all restore points of one environment, where shared files count once. The oldest restore points are removed first.",
        Says("no limit"),
        "50G",
        |reader, node, key, keep| keep.bytes = reader.size(node, key),
    ),
];

/// Reads the rules for the restore points on this machine.
pub(super) fn read_keep(reader: &mut ConfigReader, node: &Node, key: &str, keep: &mut BackupKeep) {
    keys::read_section(reader, node, key, "{daily: 7, weekly: 4}", KEEP_KEYS, keep);
}

/// Reads the rules for the copies in a store, which have no limit for the disk of this machine.
pub(super) fn read_copies(reader: &mut ConfigReader, node: &Node, key: &str) -> BackupKeep {
    let (mut keep, keys) = (BackupKeep::default(), KEEP_KEYS.split_last().map_or(KEEP_KEYS, |(_, counts)| counts));
    let mapping = Mapping { name: key, prefix: key, example: "{daily: 30, yearly: 5}" };
    super::keys::read(reader, node, &mapping, keys, &mut keep);
    keep
}

/// Replaces a value, if a new value was read.
pub(super) fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// Reads a number in the range from `from` to `to`.
pub(super) fn number<T: TryFrom<u64>>(reader: &mut ConfigReader, node: &Node, key: &str, from: u64, to: u64) -> Option<T> {
    reader.number(node, key, from, to).and_then(|number| T::try_from(number).ok())
}
