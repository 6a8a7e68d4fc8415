//! The requests about copies of restore points in off-site stores. Copying and checking need the right to deploy, as taking and verifying do.
//! An import needs the right to operate, because it brings data into the environment. Only the local command line may name an arbitrary
//! store: the server would otherwise connect to an address, and read a file, that a remote user chooses.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::backup::{PointView, of_points, point_name};
use crate::{
    config::{ByteSize, OffsiteAddress, OffsiteConfig},
    control::{
        authz::Caller,
        authz::Needs,
        error::{CommandError, refused, usage},
        request::{Context, Reply, Request},
        state::Control,
    },
    model::{Access, Environment, Target, sanitise_line},
    pipeline::{CopyState, OffsiteState},
};

/// The copies of an environment's restore points in one store.
#[derive(Debug, Clone, Serialize)]
pub struct StoreSummary {
    /// The address of the store.
    pub url: String,
    /// The number of copies.
    pub copies: u64,
    /// The number of copies that were read back without a defect.
    pub verified: u64,
    /// The number of copies that are damaged or missing.
    pub damaged: u64,
    /// The newest restore point whose copy was read back.
    pub newest: Option<String>,
    /// The time of the last check.
    pub checked: Option<Timestamp>,
    /// The defects that the last check found, at most 100.
    pub defects: Vec<String>,
    /// The reason why the last cycle failed; absent if it succeeded.
    pub failure: Option<String>,
    /// The last restore point that another server has copied to the same repository within 48 hours.
    pub rival: Option<String>,
    /// The time of the next attempt after a failure.
    pub retry: Option<Timestamp>,
}

/// The copy of a restore point in one store.
#[derive(Debug, Clone, Serialize)]
pub struct CopyView {
    /// The address of the store.
    pub url: String,
    /// `verified` (read back without a defect), `copied` (not read back in whole yet) or `failed` (damaged or missing).
    pub state: &'static str,
    /// The time of the copy.
    pub copied: Timestamp,
    /// The time at which the copy was read back.
    pub verified: Option<Timestamp>,
    /// The defect of a failed copy.
    pub defect: Option<String>,
}

/// Returns the state of each store of the server file.
pub(super) fn stores_of(control: &Control, environment: &Environment) -> Vec<StoreSummary> {
    let pipeline = control.pipeline();
    let (record, problem) = match pipeline.offsite_record(environment) {
        Ok(record) => (record, None),
        Err(why) => (OffsiteState::default(), Some(sanitise_line(&why))),
    };
    let stores = pipeline.services().config.backup.offsite.iter().map(|store| {
        let url = store.url.to_string();
        let state = record.stores.get(&url).cloned().unwrap_or_default();
        let number = |is: &dyn Fn(&CopyState) -> bool| state.copies.values().filter(|copy| is(copy)).count() as u64;
        let is_good = |copy: &CopyState| copy.verified.is_some() && !copy.is_damaged;
        StoreSummary {
            url,
            copies: number(&|_| true),
            verified: number(&is_good),
            damaged: number(&|copy| copy.is_damaged),
            newest: state.copies.iter().rfind(|(_, copy)| is_good(copy)).map(|(id, _)| id.clone()),
            checked: state.checked,
            defects: state.defects.iter().map(|defect| sanitise_line(defect)).collect(),
            failure: problem.clone().or(state.failure),
            rival: state.rival,
            retry: state.retry,
        }
    });
    stores.collect()
}

/// Returns the copies of a restore point.
pub(super) fn copies_of(record: &OffsiteState, point: &str) -> Vec<CopyView> {
    let copies = record.stores.iter().filter_map(|(url, store)| {
        let copy = store.copies.get(point)?;
        let state = match (copy.is_damaged, copy.verified) {
            (true, _) => "failed",
            (false, Some(_)) => "verified",
            (false, None) => "copied",
        };
        let defect = copy.is_damaged.then(|| store.defects.first().map(|defect| sanitise_line(defect)).unwrap_or_default());
        Some(CopyView { url: url.clone(), state, copied: copy.copied, verified: copy.verified, defect })
    });
    copies.collect()
}

/// The request to copy the restore points to all stores, and to check the stores, now.
#[derive(Debug)]
pub struct BackupCopy {
    /// The environment.
    pub target: Target,
}

/// The answer to [`BackupCopy`].
#[derive(Debug, Clone, Serialize)]
pub struct CopyReport {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The stores.
    pub stores: Vec<StoreSummary>,
}

impl Request for BackupCopy {
    type View = CopyReport;
    const NAME: &'static str = "backup copy";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<CopyReport>, CommandError> {
        let environment = control.environment(&self.target)?;
        control.pipeline().copy_points(&environment).await.map_err(|error| of_points(&error))?;
        Ok(CopyReport { environment: environment.title(), stores: stores_of(control, &environment) }.into())
    }
}

/// The request to list the restore points in a store, or to bring one of them into the environment.
#[derive(Debug)]
pub struct BackupImport {
    /// The environment.
    pub target: Target,
    /// The store and the file with its password; absent for the first store of the server file.
    pub from: Option<ImportSource>,
    /// The restore point: an id, the beginning or end of an id, or `latest`; absent to list the restore points.
    pub point: Option<String>,
}

/// A store that the local command line names.
#[derive(Debug)]
pub struct ImportSource {
    /// The address.
    pub url: String,
    /// The file with the password.
    pub password_file: PathBuf,
    /// The file with the credentials.
    pub credentials_file: Option<PathBuf>,
}

/// The answer to [`BackupImport`].
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum ImportView {
    /// The restore points in the store.
    List {
        /// The environment, as `project/environment`.
        environment: String,
        /// The restore points, newest first.
        copies: Vec<StoredCopy>,
    },
    /// The restore point that is now in the environment.
    Imported(Box<PointView>),
}

/// A restore point in a store.
#[derive(Debug, Clone, Serialize)]
pub struct StoredCopy {
    /// The id of the restore point.
    pub id: String,
    /// The time of the capture.
    pub taken: Option<Timestamp>,
    /// The id of restic's snapshot.
    pub snapshot: String,
}

impl Request for BackupImport {
    type View = ImportView;
    const NAME: &'static str = "backup import";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<ImportView>, CommandError> {
        self.point.as_deref().map(point_name).transpose()?;
        let environment = control.environment(&self.target)?;
        let pipeline = control.pipeline();
        let store = match self.from {
            Some(_) if !matches!(caller, Caller::Operator) => {
                return Err(refused("cannot import from the named store: only the command line on the server may name a store")
                    .hint("run the command on the server, or add the store to backup.offsite of the server file"));
            }
            Some(source) => {
                let url: OffsiteAddress = source.url.parse().map_err(|why: String| usage(format!("invalid address: {why}")))?;
                OffsiteConfig {
                    url,
                    password_file: source.password_file,
                    credentials_file: source.credentials_file,
                    verify: ByteSize::mebibytes(0),
                    keep: None,
                }
            }
            None => pipeline.services().config.backup.offsite.first().cloned().ok_or_else(|| {
                refused("cannot import: the server file names no store").hint("name a store with --from and --password-file")
            })?,
        };
        let view = match self.point {
            None => {
                let copies = pipeline.list_copies(&environment, &store).await.map_err(|error| of_points(&error))?;
                let copies = copies.into_iter().map(|copy| StoredCopy {
                    id: copy.id,
                    taken: Timestamp::from_second(copy.taken).ok(),
                    snapshot: copy.snapshot,
                });
                ImportView::List { environment: environment.title(), copies: copies.collect() }
            }
            Some(point) => {
                let info = pipeline.import_point(&environment, &store, point).await.map_err(|error| of_points(&error))?;
                ImportView::Imported(Box::new(PointView::new(&environment, info)))
            }
        };
        Ok(view.into())
    }
}
