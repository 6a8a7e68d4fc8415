//! The types of larder's values: names, modes, phases, releases and events. This module does no input or output.
//!
//! The types check each value during its creation or parsing, so other modules do not check the value again.

mod address;
mod checked;
mod configuration;
mod database;
mod environment;
mod event;
mod health;
mod id;
mod launch;
mod manifest;
mod name;
mod network;
mod notification;
mod phase;
mod redaction;
mod signature;
mod slot_use;
mod source;
mod spec;
mod ssh_url;
mod tag;
mod target;
mod terminal;
mod text;
mod words;

pub use address::{ServerAddress, bucket_and_prefix, has_dots};
pub(crate) use checked::{checked_text, text_form};
pub use configuration::{ConfigChange, ConfigVariables, SnapshotNumber, SnapshotRef, VariableChange};
pub use database::DatabaseEngine;
pub use environment::{Environment, Live, Project, Remote, StorageKind, Strategy};
pub use event::{Blame, Event, Fault, Outcome, Record, StepStatus};
pub use health::{HealthRecord, PassedCheck, Period, ProcessRestart};
pub use id::{CommitId, DeploymentId, EnvId, PointId, ProjectId, ReleaseId, ReleaseNumber, UserNumbers};
pub use larder_archive::{ArchiveInfo, Digest, Entry, EntryKind, Frame, bounded};
pub use launch::{
    Area, EditWork, Exit, Launch, LimitClass, MeasuredUser, ProcessId, Role, StopSignal, Supervision, TreeName, UnitRequest,
};
pub use manifest::{BuildpackUse, Manifest};
pub use name::{BranchName, DatabaseName, EnvironmentName, NameError, ProcessType, ProjectName, RemoteName, UnitName, UserName};
pub use network::{Network, NetworkError};
pub use notification::{MailAddress, NotificationFamily, NotificationKind, NotificationTopic};
pub use phase::Phase;
pub use redaction::{Redactor, encoded_forms, may_be_secret};
pub use signature::{PublicKey, Signature, SignatureBytes};
pub use slot_use::{Occupant, SlotError, SlotTable, SlotUse, StopLimits};
pub use source::{SourceEntry, SourceKind, SourceList};
pub use spec::{DeploymentSpec, EnvironmentIdentity, Origin, SpecError, StepName, Trigger};
pub use ssh_url::{SshUrl, SshUrlError};
pub use tag::{ReleaseNameForm, best_tag, compare_tags};
pub use target::Target;
pub use terminal::{ClientTerminal, TerminalSize};
pub use text::{plain_line, sanitise_bytes, sanitise_line, sanitise_reason, sanitise_text, visible_colour};
pub use words::{Access, Mode, Slot, Workspace};
