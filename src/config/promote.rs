//! What a release must have gone through where it ran before, so that it may come here.

use serde::{Deserialize, Serialize};

use super::{reader::Reader, recipe_read, value::TimeSpan, yaml::Node};

pub(super) const PROMOTE: [&str; 3] = ["min_healthy", "checks", "max_restarts"];

/// A policy; an empty one accepts everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Promote {
    /// How long it must have served.
    pub min_healthy: Option<TimeSpan>,
    /// Which checks it must have passed.
    pub checks: Vec<PromoteCheck>,
    /// How many of its processes may have ended by themselves.
    pub max_restarts: Option<u32>,
}

/// A check that a health record can tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromoteCheck {
    /// The pages under `smoke:` answered as they should.
    Smoke,
    /// The project's own tests, `.larder/post_build`, succeeded.
    Tests,
    /// The health check of the new processes.
    Health,
}

impl PromoteCheck {
    const WORDS: [(&'static str, PromoteCheck); 3] =
        [("smoke", PromoteCheck::Smoke), ("tests", PromoteCheck::Tests), ("health", PromoteCheck::Health)];

    /// Its name in a health record.
    pub fn as_str(self) -> &'static str {
        match self {
            PromoteCheck::Smoke => "smoke",
            PromoteCheck::Tests => "tests",
            PromoteCheck::Health => "health",
        }
    }
}

impl Promote {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Promote::default()
    }

    /// Both policies at once: of each rule, the stricter one.
    #[must_use]
    pub fn and(mut self, other: &Promote) -> Promote {
        self.min_healthy = self.min_healthy.max(other.min_healthy);
        self.checks.extend(&other.checks);
        self.checks.sort_unstable();
        self.checks.dedup();
        self.max_restarts = self.max_restarts.into_iter().chain(other.max_restarts).min();
        self
    }
}

/// What one level says; what it leaves out stays as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct PromoteOverrides {
    min_healthy: Option<TimeSpan>,
    checks: Option<Vec<PromoteCheck>>,
    max_restarts: Option<u32>,
}

impl PromoteOverrides {
    pub fn apply(&self, promote: &mut Promote) {
        promote.min_healthy = self.min_healthy.or(promote.min_healthy);
        if let Some(checks) = &self.checks {
            promote.checks.clone_from(checks);
        }
        promote.max_restarts = self.max_restarts.or(promote.max_restarts);
    }
}

/// Reads `promote:`, which the recipe and the server file have alike.
pub(super) fn read(reader: &mut Reader, node: &Node) -> PromoteOverrides {
    let section = reader.section(node, "promote", &PROMOTE, "{min_healthy: 10m, checks: [smoke]}");
    let checks = section.get("checks").map(|node| {
        let nodes = reader.list(node, "promote.checks", "[smoke, tests]");
        let words = PromoteCheck::WORDS;
        let mut checks: Vec<_> = nodes.iter().filter_map(|node| reader.choice(node, "promote.checks", &words)).collect();
        checks.sort_unstable();
        checks.dedup();
        checks
    });
    let restarts = section.get("max_restarts").and_then(|node| reader.number(node, "promote.max_restarts", 0, 100_000));
    PromoteOverrides {
        min_healthy: section.get("min_healthy").and_then(|node| recipe_read::time(reader, node, "promote.min_healthy")),
        checks,
        max_restarts: restarts.and_then(|number| u32::try_from(number).ok()),
    }
}
