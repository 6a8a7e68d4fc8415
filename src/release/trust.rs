//! Decides which received deliverables are accepted; [`accept`](super::accept()) acts on the decisions.
//!
//! An attacker without the signing key can rename files, exchange them, and present old releases as new. Therefore file names are never
//! trusted: release, commit, project and environment are taken from the signed statement. If a release was requested by its id, only this
//! release is accepted. If the newest release was requested, a release that is older than an accepted release is refused ([`Accepted`]).
//! This module cannot detect an attacker who holds back newer releases.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use super::promotion::{promotable, served};
use super::{Refusal, ReleaseError, manifest, verify_signature};
use crate::{
    host::files::{read_limited, write_atomic},
    model::{CommitId, EnvironmentName, HealthRecord, Manifest, ProjectName, PublicKey, ReleaseId},
};

/// The properties of the requested deliverable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The project that the release must belong to.
    pub project: ProjectName,
    /// The environments that may have built the release. If the list is empty, any environment of the project is accepted.
    pub environments: Vec<EnvironmentName>,
    /// The requested release; `None` if no release was requested by its id.
    pub release: Option<ReleaseId>,
    /// The requested commit; `None` if no commit was requested.
    pub commit: Option<CommitId>,
    /// The git tree of the requested commit. A release of another commit with the same tree is accepted as well.
    pub source: Option<CommitId>,
    /// True if the newest release was requested. A release that is older than an accepted release is then refused.
    pub newest: bool,
}

impl Expectation {
    /// Returns an expectation that every release of `project` meets.
    pub fn of(project: ProjectName) -> Expectation {
        Expectation { project, environments: Vec::new(), release: None, commit: None, source: None, newest: false }
    }
}

/// The content of `accepted.json`: one mark for each combination of signer, project and environment. A mark records the newest accepted
/// build of its combination. A mark outlives its release, so that an old release is not accepted as the newest after newer releases were
/// pruned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    marks: Vec<Mark>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    signer: PublicKey,
    project: ProjectName,
    environment: EnvironmentName,
    build: u64,
    created: Timestamp,
    release: ReleaseId,
}

/// The maximum number of marks of one signer in `accepted.json`. The limit applies to each signer alone, so that a signer with many
/// environments cannot displace the marks of another signer.
const MAX_MARKS_OF_SIGNER: usize = 256;

/// The maximum size of `accepted.json`, in bytes. The marks of one signer take at most 128 KiB.
const MAX_BYTES: u64 = 64 << 20;

impl Accepted {
    /// Reads the file at `path`. A missing file means that nothing was accepted yet.
    pub fn load(path: &Path) -> Result<Accepted, ReleaseError> {
        match read_limited(path, MAX_BYTES) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ReleaseError::Manifest { path: path.to_owned(), why: error.to_string() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Accepted::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the file and syncs it to the disk.
    pub fn save(&self, path: &Path) -> Result<(), ReleaseError> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| ReleaseError::Manifest { path: path.to_owned(), why: error.to_string() })?;
        Ok(write_atomic(path, &bytes, 0o600)?)
    }

    fn mark_for(&self, manifest: &Manifest) -> Option<&Mark> {
        let signer = manifest.signature?.key;
        let same =
            |mark: &&Mark| mark.signer == signer && mark.project == manifest.project && mark.environment == manifest.environment;
        self.marks.iter().find(same)
    }

    /// Records an accepted manifest. Returns true if a mark changed. The caller must then save the file.
    pub fn note(&mut self, manifest: &Manifest) -> bool {
        let Some(signature) = manifest.signature else { return false };
        let rank = (manifest.build, manifest.created);
        if self.mark_for(manifest).is_some_and(|mark| rank <= (mark.build, mark.created)) {
            return false;
        }
        let Manifest { project, environment, build, created, release, .. } = manifest;
        self.marks.retain(|mark| mark.signer != signature.key || mark.project != *project || mark.environment != *environment);
        // If the signer has too many marks, its oldest marks are dropped.
        self.marks.sort_by_key(|mark| mark.created);
        let same_signer = self.marks.iter().filter(|mark| mark.signer == signature.key).count();
        let mut excess = same_signer.saturating_sub(MAX_MARKS_OF_SIGNER - 1);
        self.marks.retain(|mark| {
            let is_dropped = excess > 0 && mark.signer == signature.key;
            excess = excess.saturating_sub(usize::from(is_dropped));
            !is_dropped
        });
        let (project, environment) = (project.clone(), environment.clone());
        self.marks.push(Mark {
            signer: signature.key,
            project,
            environment,
            build: *build,
            created: *created,
            release: *release,
        });
        true
    }
}

/// Parses a manifest and checks its consistency. The caller must not trust the result before [`accept`] has checked it.
pub fn read_manifest(bytes: &[u8]) -> Result<Manifest, Refusal> {
    newer_format("manifest", bytes, Manifest::FORMAT)?;
    manifest::from_bytes(bytes, Path::new("manifest")).map_err(|error| {
        let why = match error {
            ReleaseError::Manifest { why, .. } => why,
            other => match super::WorkerAnswer::<()>::from(Err(other)) {
                super::WorkerAnswer::Refused(why) | super::WorkerAnswer::Failed(why) => why,
                super::WorkerAnswer::Done(()) => String::new(),
            },
        };
        Refusal::Unreadable { what: "manifest".to_owned(), why: why.chars().take(1000).collect() }
    })
}

/// Refuses a file of a newer format. Callers check the format before they parse the file, because the parser may fail on a file of a newer
/// format.
fn newer_format(what: &str, bytes: &[u8], reads: u32) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    match serde_json::from_slice::<Format>(bytes) {
        Ok(Format { format }) if format > reads => Err(Refusal::NewerFormat { what: what.to_owned(), format, reads }),
        _ => Ok(()),
    }
}

/// Checks that `manifest` meets the expectation and that a key in `trust` signed it. The archive is checked later, so that the archive of a
/// refused manifest need not be fetched.
pub fn accept(expect: &Expectation, manifest: &Manifest, trust: &[PublicKey], accepted: &Accepted) -> Result<(), Refusal> {
    let release = manifest.release;
    let signature = manifest.signature.ok_or(Refusal::Unsigned { release })?;
    let key = signature.key;
    if !trust.contains(&key) {
        return Err(Refusal::UnknownSigner { release, project: expect.project.clone(), key });
    }
    if !verify_signature(&signature, &manifest.statement()) {
        return Err(Refusal::BadSignature { release, key });
    }
    if manifest.project != expect.project {
        let (found, wanted) = (manifest.project.clone(), expect.project.clone());
        return Err(Refusal::OtherProject { release, found, wanted });
    }
    if !expect.environments.is_empty() && !expect.environments.contains(&manifest.environment) {
        let (found, wanted) = (manifest.environment.clone(), expect.environments.clone());
        return Err(Refusal::OtherEnvironment { release, found, wanted });
    }
    if let Some(wanted) = expect.release.filter(|wanted| *wanted != release) {
        return Err(Refusal::OtherRelease { found: release, wanted });
    }
    let same_source = expect.source.is_some() && expect.source == manifest.source;
    if let Some(wanted) = expect.commit.as_ref().filter(|wanted| **wanted != manifest.commit && !same_source) {
        let (found, wanted) = (manifest.commit.clone(), wanted.clone());
        return Err(Refusal::OtherCommit { release, found, wanted });
    }
    if expect.newest
        && let Some(mark) = accepted.mark_for(manifest)
        && mark.release != release
        && (manifest.build, manifest.created) <= (mark.build, mark.created)
    {
        let build = manifest.build;
        return Err(Refusal::Replayed { release, build, newer: mark.release, newer_build: mark.build });
    }
    Ok(())
}

/// Parses a health record. The caller must not trust the result before [`accept_record`] has checked it.
pub fn read_record(bytes: &[u8]) -> Result<HealthRecord, Refusal> {
    let what = "health record";
    newer_format(what, bytes, HealthRecord::FORMAT)?;
    let record: HealthRecord = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::Unreadable { what: what.to_owned(), why: error.to_string().chars().take(1000).collect() })?;
    if record.format != HealthRecord::FORMAT {
        let why = format!("it has the format {} (expected {})", record.format, HealthRecord::FORMAT);
        return Err(Refusal::Unreadable { what: what.to_owned(), why });
    }
    Ok(record)
}

/// Checks that `record` is about the release of `manifest` and that a key in `trust` signed it. The signer may be any server that ran the
/// release, not only the server that built it.
pub fn accept_record(record: &HealthRecord, manifest: &Manifest, trust: &[PublicKey]) -> Result<(), Refusal> {
    let release = manifest.release;
    let refused = |why: String| Refusal::Record { release, why };
    let signature = record.signature.ok_or_else(|| refused("it is not signed".to_owned()))?;
    if !trust.contains(&signature.key) {
        return Err(refused(format!("it is signed by {}, which is not trusted for {}", signature.key, manifest.project)));
    }
    if !verify_signature(&signature, &record.statement()) {
        return Err(refused(format!("it was altered after {} signed it", signature.key)));
    }
    if record.project != manifest.project {
        return Err(refused(format!("it belongs to the project {} (expected {})", record.project, manifest.project)));
    }
    if record.release != release {
        return Err(refused(format!("it belongs to release {} (expected {release})", record.release)));
    }
    if record.tree != manifest.tree {
        return Err(refused("its tree digest differs from the digest in the manifest".to_owned()));
    }
    Ok(())
}
