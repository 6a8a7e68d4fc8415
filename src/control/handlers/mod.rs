//! The requests that the server carries out. Each has its fields, the right that it needs, its handler and the view that it returns.

mod deliverables;
mod deployments;
mod doctor;
mod drift;
mod exports;
mod keys;
mod logs;
mod processes;
mod projects;
mod promotion;
mod releases;
mod remotes;
mod status;
mod users;

pub use self::{
    deliverables::{DeliverableGet, DeliverableInfo, DeliverableList},
    deployments::{Deploy, DeployAction, DeployView, PlanShow, PlanView, Rollback},
    doctor::{Doctor, DoctorCheck, Grade},
    drift::{DriftAction, DriftReport, DriftRequest, DriftView, PatchDetail, PatchRow, TreeDifference, TreeReport},
    exports::{Imported, ReleaseExport, ReleaseImport},
    keys::{KeyAdd, KeyAdded, KeyRemove, KeyRemoved, KeyShow, KeyTrust, KeyTrustView, KeyUntrust, KeyUntrusted, TrustRow},
    logs::LogsRead,
    processes::{ProcessRow, Ps, Restart, Restarted, Run, Scale, Scaled},
    projects::{ProjectCreate, ProjectCreated, ProjectDestroy, ProjectDestroyed, ProjectInfo, ProjectList, ProjectRow},
    promotion::{Promote, Published, Pull, PullView},
    releases::{
        Commit, CommitsBetween, ManifestBrief, ReleaseDetail, ReleaseDiff, ReleaseDiffView, ReleaseList, ReleasePin,
        ReleasePinned, ReleaseShow,
    },
    remotes::{RemoteAdd, RemoteAdded, RemoteCheck, RemoteList, RemoteProblem, RemoteRemove, RemoteRemoved},
    status::{EnvironmentStatus, Status, StatusReport},
    users::{UserAdd, UserAdded, UserGrant, UserGranted, UserList, UserRemove, UserRemoved, Whoami, WhoamiView},
};
