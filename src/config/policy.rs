//! The rules for promotion, drift and retention. Both the recipe and the server file can set these rules. The server file limits the
//! recipe's rules, or supplies the rules that the recipe does not set.

use serde::{Deserialize, Serialize};

use super::{
    keys::{self, Fallback::Unstated, KeyRow},
    quantity::{Age, ByteSize, TimeSpan},
    reader::ConfigReader,
    yaml::Node,
};

/// The reaction of a deployment to files of the live release that were changed by hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftPolicy {
    /// The deployment warns, saves the changes as a patch, and continues without them.
    #[default]
    Keep,
    /// The deployment is refused until the changes are saved or discarded.
    Refuse,
    /// The deployment saves the changes as a patch and applies the patch to the new release. The deployment fails if the patch does not
    /// apply.
    Reapply,
}

impl DriftPolicy {
    /// Every policy with its word in configuration files.
    pub const WORDS: [(&'static str, DriftPolicy); 3] =
        [("keep", DriftPolicy::Keep), ("refuse", DriftPolicy::Refuse), ("reapply", DriftPolicy::Reapply)];
}

/// The reaction of a push to an editable environment to files that a person changed in the checkout, and that the push changes, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EditPolicy {
    /// The push is refused, with a list of the files.
    #[default]
    Refuse,
    /// The files are put into git's stash.
    Stash,
}

impl EditPolicy {
    /// Every policy with its word in configuration files.
    pub const WORDS: [(&'static str, EditPolicy); 2] = [("refuse", EditPolicy::Refuse), ("stash", EditPolicy::Stash)];
}

/// The limits for the old releases of an environment. Releases beyond a limit are pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The number of releases that are kept.
    pub releases: u16,
    /// The age beyond which a release is pruned, if there is a limit.
    pub age: Option<Age>,
    /// The maximum disk space of all archives of the environment, if there is a limit.
    pub bytes: Option<ByteSize>,
}

/// The conditions that a release must have met in the environment from which it is promoted. The default accepts every release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromotionPolicy {
    /// The minimum time for which the release must have served.
    pub min_healthy: Option<TimeSpan>,
    /// The checks that the release must have passed.
    pub checks: Vec<PromoteCheck>,
    /// The maximum number of unexpected exits of the release's processes.
    pub max_restarts: Option<u32>,
}

/// A check whose result is part of a health record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromoteCheck {
    /// The requests of `smoke:` succeeded.
    Smoke,
    /// The project's own tests, `.larder/post_build`, succeeded.
    Tests,
    /// The health check of the new processes succeeded.
    Health,
}

impl PromoteCheck {
    const WORDS: [(&'static str, PromoteCheck); 3] =
        [("smoke", PromoteCheck::Smoke), ("tests", PromoteCheck::Tests), ("health", PromoteCheck::Health)];

    /// Returns the name of the check in a health record.
    pub fn as_str(self) -> &'static str {
        match self {
            PromoteCheck::Smoke => "smoke",
            PromoteCheck::Tests => "tests",
            PromoteCheck::Health => "health",
        }
    }
}

impl PromotionPolicy {
    /// Returns true if every release is accepted.
    pub fn is_empty(&self) -> bool {
        *self == PromotionPolicy::default()
    }

    /// Combines two policies. The result has the stricter value of each condition, and the checks of both policies.
    #[must_use]
    pub fn and(mut self, other: &PromotionPolicy) -> PromotionPolicy {
        self.min_healthy = self.min_healthy.max(other.min_healthy);
        self.checks.extend(&other.checks);
        self.checks.sort_unstable();
        self.checks.dedup();
        self.max_restarts = self.max_restarts.into_iter().chain(other.max_restarts).min();
        self
    }
}

/// The values of the recipe's section `drift`.
#[derive(Debug)]
pub(super) struct DriftDraft {
    policy: Option<DriftPolicy>,
    ignore: Vec<String>,
}

/// The keys of the recipe's section `drift`.
pub(super) const DRIFT_KEYS: &[KeyRow<DriftDraft>] = &[
    KeyRow::value("policy", "", Unstated, "keep", |reader, node, key, drift| {
        drift.policy = reader.choice(node, key, &DriftPolicy::WORDS).or(drift.policy);
    }),
    KeyRow::value(
        "ignore",
        "Patterns, as in .gitignore, of files that the application itself writes into its own directory. \
         A pattern with `!`, such as `!logs/`, reports changes that larder ignores by default.",
        Unstated,
        "\n- /uploads/\n- \"*.sqlite3\"",
        |reader, node, key, drift| drift.ignore = reader.patterns(node, key),
    ),
];

/// Reads the section `drift`, or the short form `drift: POLICY`, over the values of earlier levels.
pub(super) fn read_drift(
    reader: &mut ConfigReader,
    node: &Node,
    key: &str,
    policy: &mut Option<DriftPolicy>,
    ignore: &mut Vec<String>,
) {
    if node.text().is_some() {
        *policy = reader.choice(node, key, &DriftPolicy::WORDS).or(*policy);
        return;
    }
    let mut drift = DriftDraft { policy: *policy, ignore: std::mem::take(ignore) };
    let example = "{policy: reapply, ignore: [\"/uploads/\"]}";
    keys::read_section(reader, node, key, example, DRIFT_KEYS, &mut drift);
    *policy = drift.policy;
    *ignore = drift.ignore;
}

/// The keys of `promote:`, which are the same in the recipe and in the server file.
pub(super) const PROMOTE_KEYS: &[KeyRow<PromotionPolicy>] = &[
    KeyRow::value(
        "min_healthy",
        "The minimum time for which the release must have served.",
        Unstated,
        "10m",
        |reader, node, key, promote| {
            promote.min_healthy = reader.time(node, key).or(promote.min_healthy);
        },
    ),
    KeyRow::value(
        "checks",
        "The checks that the release must have passed: smoke (the requests of `smoke:`), tests (.larder/post_build), health (the health check of the release's processes).",
        Unstated,
        "[smoke]",
        |reader, node, key, promote| {
            let nodes = reader.list(node, key, "[smoke, tests]");
            promote.checks = nodes.iter().filter_map(|node| reader.choice(node, key, &PromoteCheck::WORDS)).collect();
            promote.checks.sort_unstable();
            promote.checks.dedup();
        },
    ),
    KeyRow::value(
        "max_restarts",
        "The maximum number of unexpected exits of the release's processes.",
        Unstated,
        "3",
        |reader, node, key, promote| {
            let restarts = reader.number(node, key, 0, 100_000).and_then(|number| u32::try_from(number).ok());
            promote.max_restarts = restarts.or(promote.max_restarts);
        },
    ),
];

/// Reads the section `promote:`, and overwrites the conditions in `promote` that the section sets.
pub(super) fn read_promote(reader: &mut ConfigReader, node: &Node, key: &str, promote: &mut PromotionPolicy) {
    keys::read_section(reader, node, key, "{min_healthy: 10m, checks: [smoke]}", PROMOTE_KEYS, promote);
}
