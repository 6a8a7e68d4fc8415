//! The specification of a deployment, which contains all decisions and all random ids that are made before the first step.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    BranchName, CommitId, DeploymentId, EnvId, Environment, EnvironmentName, Live, Mode, Phase, ProjectId, ProjectName,
    ReleaseId, ReleaseNumber, RemoteName, Slot, SnapshotRef, Strategy, UserName,
};

/// The name of a step in plans and journals, in the form `phase.word`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepName(String);

impl StepName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for StepName {
    fn from(name: &str) -> StepName {
        StepName(name.to_owned())
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The request that started a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Trigger {
    /// A push to the deploy branch.
    Push {
        /// The user who pushed.
        by: UserName,
    },
    /// `larder deploy`.
    Redeploy {
        /// The user who requested the deployment.
        by: UserName,
    },
    /// `larder pull`, or `larder promote` to this environment from another environment or server.
    Pull {
        /// The user who requested the deployment.
        by: UserName,
    },
    /// `larder rollback`.
    Rollback {
        /// The user who requested the deployment.
        by: UserName,
    },
    /// A change of the configuration, such as `larder config set`.
    Configure {
        /// The user who changed the configuration.
        by: UserName,
    },
    /// A push to the pillar.
    Pillar {
        /// The user who pushed.
        by: UserName,
    },
}

impl Trigger {
    /// Returns the user who started the deployment.
    pub fn by(&self) -> &UserName {
        match self {
            Trigger::Push { by }
            | Trigger::Redeploy { by }
            | Trigger::Pull { by }
            | Trigger::Rollback { by }
            | Trigger::Configure { by }
            | Trigger::Pillar { by } => by,
        }
    }
}

/// The source of a deployment's release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The release is built in this environment, from its commit.
    #[default]
    Commit,
    /// The environment's own store of deliverables.
    Store,
    /// Another environment of the project on this server.
    Environment(EnvironmentName),
    /// A remote: another server, or a shared store of deliverables.
    Remote(RemoteName),
    /// An earlier deployment of this environment: the release was live before, and the journal of that deployment describes it.
    #[serde(rename = "past")]
    Previous,
    /// The live release, which starts again with a changed configuration. The journal of the deployment that made the release live describes
    /// the release.
    Configuration,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Commit => f.write_str("its commit"),
            Origin::Store => f.write_str("the store"),
            Origin::Environment(name) => write!(f, "the environment {name}"),
            Origin::Remote(name) => write!(f, "the remote {name}"),
            Origin::Previous => f.write_str("an earlier deployment"),
            Origin::Configuration => f.write_str("the live release"),
        }
    }
}

/// The numbers and names of the environment to which a deployment belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentIdentity {
    /// The number of the environment, which is never reused.
    pub id: EnvId,
    /// The number of the project.
    pub project_id: ProjectId,
    /// The name of the project.
    pub project: ProjectName,
    /// The name of the environment within the project.
    pub name: EnvironmentName,
}

impl EnvironmentIdentity {
    /// Returns the identity of `environment`.
    pub fn of(environment: &Environment) -> EnvironmentIdentity {
        EnvironmentIdentity {
            id: environment.id,
            project_id: environment.project_id,
            project: environment.project.clone(),
            name: environment.name.clone(),
        }
    }
}

/// The part of a deployment that is fixed before its first step. The specification is the first event of the deployment's journal. A server
/// that continues the deployment after a restart uses the decisions of this specification and does not make them again.
///
/// There are two versions of the format. This program writes version 2. Version 1 is the `opened` event of larder 0.1, which has no field
/// `version`. [`DeploymentSpec::for_environment`] supplies the environment and the mode, which version 1 also lacks. Each other field that
/// version 1 lacks gets the value that applied to all deployments of larder 0.1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct DeploymentSpec {
    /// The version of the format that this specification was read from.
    pub version: u32,
    /// The deployment.
    #[serde(rename = "deployment")]
    pub id: DeploymentId,
    /// The request that started the deployment.
    pub trigger: Trigger,
    /// The environment; `None` in version 1, where only the journal's directory names the environment.
    pub environment: Option<EnvironmentIdentity>,
    /// The environment's mode when the deployment began.
    pub mode: Mode,
    /// The way in which the release replaces the previous release.
    pub strategy: Strategy,
    /// The branch that is deployed. The ref of the branch moves when the deployment succeeds.
    pub branch: BranchName,
    /// The commit that is deployed.
    pub commit: CommitId,
    /// The release that the deployment builds, fetches or makes live again. The id is fixed before the first step, so that a repeated step
    /// uses the same id.
    pub release: ReleaseId,
    /// The number of the release.
    pub number: ReleaseNumber,
    /// The slot in which the release boots.
    pub slot: Slot,
    /// The release that was live when the deployment began. Unwinding makes this release live again.
    pub previous: Option<Live>,
    /// The names of the steps in the order in which they run.
    pub plan: Vec<StepName>,
    /// The step after which the release serves requests. A deployment that is interrupted after this step is finished, not unwound.
    pub commit_point: StepName,
    /// The source of the release.
    pub origin: Origin,
    /// True if the release was live in this environment before and its tree is still installed. Unwinding then keeps the release's tree,
    /// files and ref.
    pub again: bool,
    /// The earlier deployment that made this release live; `None` if no earlier deployment made the release live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<DeploymentId>,
    /// The reason that a person gave for overriding the promotion policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overriding: Option<String>,
    /// The phases of a dry run; empty if the deployment is not a dry run.
    #[serde(rename = "trial", skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<Phase>,
    /// The commit that the branch named before the push, according to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<CommitId>,
    /// True if the user requested the newest release, and did not name a release.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub newest: bool,
    /// The tags of the push that started the deployment, each with its name and object. git stores these tags only after the deployment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(String, CommitId)>,
    /// The id of the restore point whose data goes live together with the release; `None` if the data stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The configuration snapshot that the processes of the release get; `None` if the environment has no configuration, as in all journals
    /// that were written before snapshots existed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<SnapshotRef>,
    /// The commit of the pillar whose values the configuration snapshot contains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pillar: Option<CommitId>,
    /// True if the pusher asked to put files that were changed by hand in the checkout into git's stash.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stash: bool,
}

/// The fields of a specification in a journal, of version 1 or 2.
#[derive(Deserialize)]
struct Fields {
    deployment: DeploymentId,
    trigger: Trigger,
    environment: Option<EnvironmentIdentity>,
    mode: Option<Mode>,
    strategy: Option<Strategy>,
    branch: BranchName,
    commit: CommitId,
    release: ReleaseId,
    number: ReleaseNumber,
    slot: Slot,
    previous: Option<Live>,
    plan: Vec<StepName>,
    commit_point: Option<StepName>,
    #[serde(default)]
    origin: Origin,
    #[serde(default)]
    again: bool,
    recorded: Option<DeploymentId>,
    overriding: Option<String>,
    #[serde(default)]
    trial: Vec<Phase>,
    seen: Option<CommitId>,
    #[serde(default)]
    newest: bool,
    #[serde(default)]
    tags: Vec<(String, CommitId)>,
    data: Option<String>,
    configuration: Option<SnapshotRef>,
    pillar: Option<CommitId>,
    #[serde(default)]
    stash: bool,
}

/// The reason why a specification cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A newer version of larder has written the journal.
    #[error(
        "cannot read the deployment's specification: it has format version {found}, and this larder reads versions 1 to {}",
        DeploymentSpec::VERSION
    )]
    Version {
        /// The version in the journal.
        found: Value,
    },
    /// A field of the specification is missing or has a wrong value.
    #[error("cannot read the deployment's specification: {0}")]
    Field(String),
    /// The journal belongs to another environment.
    #[error("the journal belongs to {found} (expected {expected})")]
    Environment {
        /// The environment in the journal.
        found: String,
        /// The environment in whose directory the journal is.
        expected: String,
    },
}

impl TryFrom<Map<String, Value>> for DeploymentSpec {
    type Error = SpecError;

    fn try_from(map: Map<String, Value>) -> Result<DeploymentSpec, SpecError> {
        let version = match map.get("version") {
            None => 1,
            Some(found) => match found.as_u64() {
                Some(1) => 1,
                Some(2) => 2,
                _ => return Err(SpecError::Version { found: found.clone() }),
            },
        };
        let fields: Fields = serde_json::from_value(Value::Object(map)).map_err(|error| SpecError::Field(error.to_string()))?;
        let missing = |name: &str| SpecError::Field(format!("missing field `{name}`"));
        let (mode, strategy, commit_point) = match version {
            // Version 1 has no mode. This mode is only a guess from the plan, until `for_environment` sets the environment's mode.
            1 => {
                let cooks = fields.plan.iter().any(|step| step.as_str() == "build.compile");
                let mode = if cooks { Mode::Cooking } else { Mode::Final };
                (mode, Strategy::BlueGreen, StepName::from("deploy.switch"))
            }
            _ => (
                fields.mode.ok_or_else(|| missing("mode"))?,
                fields.strategy.ok_or_else(|| missing("strategy"))?,
                fields.commit_point.ok_or_else(|| missing("commit_point"))?,
            ),
        };
        if version > 1 && fields.environment.is_none() {
            return Err(missing("environment"));
        }
        Ok(DeploymentSpec {
            version,
            id: fields.deployment,
            trigger: fields.trigger,
            environment: fields.environment,
            mode,
            strategy,
            branch: fields.branch,
            commit: fields.commit,
            release: fields.release,
            number: fields.number,
            slot: fields.slot,
            previous: fields.previous,
            plan: fields.plan,
            commit_point,
            origin: fields.origin,
            again: fields.again,
            recorded: fields.recorded,
            overriding: fields.overriding,
            dry_run: fields.trial,
            seen: fields.seen,
            newest: fields.newest,
            tags: fields.tags,
            data: fields.data,
            configuration: fields.configuration,
            pillar: fields.pillar,
            stash: fields.stash,
        })
    }
}

impl DeploymentSpec {
    /// The version of the format that this program writes.
    pub const VERSION: u32 = 2;

    /// Checks that the deployment belongs to `environment`, and returns the specification. A specification of version 1 gets its
    /// environment and its mode from `environment`.
    ///
    /// # Errors
    /// [`SpecError::Environment`] if the number of the environment or of the project differs.
    pub fn for_environment(mut self, environment: &Environment) -> Result<DeploymentSpec, SpecError> {
        match &self.environment {
            None => {
                self.environment = Some(EnvironmentIdentity::of(environment));
                self.mode = environment.mode;
            }
            Some(own) if own.id != environment.id || own.project_id != environment.project_id => {
                let found = format!("{}/{} (number {})", own.project, own.name, own.id.0);
                return Err(SpecError::Environment { found, expected: environment.title() });
            }
            Some(_) => {}
        }
        Ok(self)
    }

    /// Returns the phases of a dry run as text, or `None` if the deployment is not a dry run.
    pub fn dry_run_phases(&self) -> Option<String> {
        let phases: Vec<_> = self.dry_run.iter().map(|phase| phase.as_str()).collect();
        (!phases.is_empty()).then(|| phases.join(", "))
    }

    /// Returns the deployment's release in the form of a live release.
    pub fn live(&self) -> Live {
        Live { release: self.release, number: self.number, commit: self.commit.clone(), slot: self.slot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, Event, Record, SnapshotNumber};

    /// Returns an `opened` event as larder 0.1 wrote it.
    fn version_1() -> Value {
        serde_json::json!({
            "at": "2026-11-21T15:42:14Z", "event": "opened", "deployment": DeploymentId::new(jiff::Timestamp::UNIX_EPOCH),
            "trigger": { "kind": "push", "by": "ann" }, "branch": "main", "commit": "a".repeat(40),
            "release": ReleaseId::new(jiff::Timestamp::UNIX_EPOCH), "number": 3, "slot": "green", "previous": null,
            "plan": ["gather.source", "build.compile", "deploy.switch"], "trial": ["gather"],
        })
    }

    fn spec_of(record: Value) -> Result<DeploymentSpec, String> {
        match serde_json::from_value(record).map_err(|error| error.to_string())? {
            Record { event: Event::Opened(spec), .. } => Ok(*spec),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn spec_of_version_1_is_upgraded() {
        let spec = spec_of(version_1()).unwrap();
        assert_eq!((spec.version, spec.mode, spec.strategy), (1, Mode::Cooking, Strategy::BlueGreen));
        assert_eq!((spec.commit_point.as_str(), &spec.origin, spec.again), ("deploy.switch", &Origin::Commit, false));
        assert_eq!(spec.dry_run, [Phase::Gather]);
        let spec = spec.for_environment(&Environment { mode: Mode::Final, ..Environment::of_shop("production", "main") });
        assert_eq!(spec.unwrap().mode, Mode::Final);
    }

    #[test]
    fn spec_survives_a_round_trip() {
        let environment = Environment::of_shop("production", "main");
        let old = spec_of(version_1()).unwrap();
        assert_eq!(old.configuration, None);
        let configuration = Some(SnapshotRef { number: SnapshotNumber(5), digest: Digest::of(b"snapshot") });
        let old = old.for_environment(&environment).unwrap();
        let spec = DeploymentSpec { version: DeploymentSpec::VERSION, origin: Origin::Configuration, configuration, ..old };
        let record = Record { at: jiff::Timestamp::UNIX_EPOCH, event: Event::Opened(Box::new(spec.clone())) };
        let value = serde_json::to_value(record).unwrap();
        assert_eq!(value["deployment"], serde_json::json!(spec.id));
        assert_eq!(spec_of(value), Ok(spec));
    }

    #[test]
    fn spec_of_unknown_version_is_refused() {
        for version in [Value::from(3), Value::from("2"), Value::Null] {
            let mut record = version_1();
            record["version"] = version;
            let error = spec_of(record).unwrap_err();
            assert!(error.contains("format version"), "{error}");
        }
    }

    #[test]
    fn spec_of_another_environment_is_refused() {
        let (shop, mut other) = (Environment::of_shop("production", "main"), Environment::of_shop("staging", "next"));
        other.id = EnvId(9);
        let spec = spec_of(version_1()).unwrap().for_environment(&shop).unwrap();
        assert!(matches!(spec.for_environment(&other), Err(SpecError::Environment { .. })));
    }
}
