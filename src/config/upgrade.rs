//! The upgrade step of a recipe: the command that changes the data for a new release, and the protection of the data during the command.

use serde::{Deserialize, Serialize};

use super::{
    keys::{
        self,
        Fallback::{Is, Says, Unstated},
        KeyRow,
    },
    quantity::TimeSpan,
    reader::ConfigReader,
    value::CommandLine,
    yaml::Node,
};

/// The upgrade step of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradeSettings {
    /// The command of the key `upgrade`; absent if the command is the `release` command.
    pub run: Option<CommandLine>,
    /// Patterns, as in `.gitignore`, of the files that the command depends on. If none of these files changed since the live release, the
    /// command is skipped. Without patterns, the command runs in each deployment.
    pub paths: Vec<String>,
    /// The protection of the data.
    pub safety: Safety,
    /// The time for which requests wait during the upgrade. Afterwards, visitors get the maintenance page.
    pub hold: TimeSpan,
}

impl Default for UpgradeSettings {
    fn default() -> UpgradeSettings {
        UpgradeSettings { run: None, paths: Vec::new(), safety: Safety::Auto, hold: TimeSpan::seconds(30) }
    }
}

/// The protection of the data while an upgrade command runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Safety {
    /// Requests wait and the old release is stopped, so that the data can be restored exactly.
    Hold,
    /// The old release serves during the upgrade. A failed upgrade does not restore the data.
    Online,
    /// `Hold` if the estimated time of the upgrade is at most the time of `hold`, else `Online`.
    #[default]
    Auto,
}

impl Safety {
    /// Each value with its word in configuration files.
    pub const WORDS: [(&'static str, Safety); 3] = [("hold", Safety::Hold), ("online", Safety::Online), ("auto", Safety::Auto)];
}

pub(super) const UPGRADE_KEYS: &[KeyRow<UpgradeSettings>] = &[
    KeyRow::<UpgradeSettings>::value(
        "run",
        "The command, which runs once in each deployment, before the new release starts.",
        Says("`release` of this file, or else of the Procfile"),
        "bin/migrate",
        |reader, node, key, upgrade| {
            let command = reader.command(node, key);
            upgrade.run = command.or_else(|| upgrade.run.take());
        },
    )
    .commented(),
    KeyRow::value(
        "paths",
        "Patterns as in .gitignore. If no matching file changed since the live release, the command is skipped and the data is not touched.",
        Unstated,
        "[\"migrations/**\"]",
        |reader, node, key, upgrade| upgrade.paths = reader.patterns(node, key),
    ),
    KeyRow::value(
        "safety",
        "hold: requests wait and the old release stops during the upgrade; if the deployment fails, the data is restored. \
         online: the old release serves during the upgrade; if the deployment fails, the data is not restored. \
         auto: hold if the estimated time fits the limit `hold`, else online.",
        Is("auto"),
        "auto",
        |reader, node, key, upgrade| {
            upgrade.safety = reader.choice(node, key, &Safety::WORDS).unwrap_or(upgrade.safety);
        },
    ),
];

/// Reads the key `upgrade`: a command, or a mapping.
pub(super) fn read(reader: &mut ConfigReader, node: &Node, key: &str, upgrade: &mut UpgradeSettings) {
    match node.text() {
        Some(_) => upgrade.run = reader.command(node, key).or_else(|| upgrade.run.take()),
        None => {
            let example = "{run: bin/migrate, paths: [\"migrations/**\"]}";
            keys::read_section(reader, node, key, example, UPGRADE_KEYS, upgrade);
        }
    }
}

/// Reads the key `hold`.
pub(super) fn read_hold(reader: &mut ConfigReader, node: &Node, key: &str, upgrade: &mut UpgradeSettings) {
    upgrade.hold = reader.time_within(node, key, TimeSpan::MAX_HOLD).unwrap_or(upgrade.hold);
}
