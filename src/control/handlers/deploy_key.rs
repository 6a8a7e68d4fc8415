//! The request about the deploy key of a project, with which builds read private repositories over ssh.

use serde::Serialize;

use crate::{
    control::{
        audit::{AuditEntry, AuditOutcome},
        authz::Needs,
        error::{CommandError, ErrorKind, refused, run_blocking, usage},
        request::{Context, Reply, Request},
    },
    model::ProjectName,
    pipeline::chain,
    remote::ssh::{DeployKeyError, DeployKeyInfo, HostPort, fingerprint, given_host_key, shown_host_key},
};

/// The request to show or to change the deploy key of a project.
#[derive(Debug)]
pub struct KeyDeploy {
    /// The project.
    pub project: ProjectName,
    pub change: DeployKeyChange,
}

/// The change of a deploy key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeployKeyChange {
    /// The key is shown, and made if there is none.
    Show,
    /// A new key replaces the key.
    Rotate,
    /// The key and the recorded host keys are removed.
    Remove,
    /// Builds accept the key of a host.
    AddHost {
        host: HostPort,
        /// The key; without a key, the key that the host shows now.
        key: Option<String>,
    },
    /// Builds no longer accept the keys of a host.
    ForgetHost { host: HostPort },
}

/// The deploy key of a project after a request.
#[derive(Debug, Serialize)]
pub struct DeployKeyView {
    /// The project.
    pub project: ProjectName,
    /// The public key, as a line for the settings of a repository; absent if the key was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The fingerprint of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// True if the request made the key.
    pub is_new: bool,
    /// The hosts that builds accept.
    pub hosts: Vec<HostKeyRow>,
    /// The host whose key the request has recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<HostKeyRow>,
}

/// A host with its key.
#[derive(Debug, Clone, Serialize)]
pub struct HostKeyRow {
    /// The host in the form of `known_hosts`.
    pub host: String,
    /// The fingerprint of the host key.
    pub fingerprint: String,
}

impl DeployKeyView {
    fn new(project: ProjectName, info: Option<DeployKeyInfo>) -> DeployKeyView {
        let row = |(host, fingerprint)| HostKeyRow { host, fingerprint };
        let (key, print, hosts) = match info {
            Some(DeployKeyInfo { line, fingerprint, hosts }) => (Some(line), Some(fingerprint), hosts),
            None => (None, None, Vec::new()),
        };
        let hosts = hosts.into_iter().map(row).collect();
        DeployKeyView { project, key, fingerprint: print, is_new: false, hosts, recorded: None }
    }
}

impl Request for KeyDeploy {
    type View = DeployKeyView;
    const NAME: &'static str = "key deploy";

    fn needs(&self) -> Needs {
        Needs::pillar(&self.project)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<DeployKeyView>, CommandError> {
        let KeyDeploy { project: name, change } = self;
        let project = control.project(caller, &name, &Needs::pillar(&name))?;
        // The right on the pillar is a right to look, so changes are recorded here.
        let detail = match &change {
            DeployKeyChange::Show => String::from("show"),
            DeployKeyChange::Rotate => String::from("rotate"),
            DeployKeyChange::Remove => String::from("remove"),
            DeployKeyChange::AddHost { host, .. } => format!("host {host}"),
            DeployKeyChange::ForgetHost { host } => format!("forget host {host}"),
        };
        let entry = AuditEntry::new(caller, KeyDeploy::NAME, format!("{name}/pillar"), Some(detail));
        control.audit(entry.clone()).await;
        let host_key = match &change {
            DeployKeyChange::AddHost { host, key } => Some(self::host_key(host, key.as_deref()).await),
            _ => None,
        };
        let done = match host_key.transpose() {
            Err(error) => Err(error),
            Ok(host_key) => {
                let (pipeline, name) = (control.pipeline().clone(), name.clone());
                let act = move || {
                    let wrong = |error| of_deploy_key(&error, &name);
                    let store = &pipeline.services().deploy_keys;
                    let own = pipeline.project_key(project.id);
                    let own = own.map_err(|error| wrong(DeployKeyError::Private(error)))?;
                    let view = |info| DeployKeyView::new(name.clone(), Some(info));
                    match change {
                        DeployKeyChange::Show => {
                            let (info, is_new) = store.make(project.id, &name, &own).map_err(wrong)?;
                            Ok(DeployKeyView { is_new, ..view(info) })
                        }
                        DeployKeyChange::Rotate => {
                            let info = store.rotate(project.id, &name, &own).map_err(wrong)?;
                            Ok(DeployKeyView { is_new: true, ..view(info) })
                        }
                        DeployKeyChange::Remove => match store.remove(project.id).map_err(wrong)? {
                            true => Ok(DeployKeyView::new(name.clone(), None)),
                            false => Err(wrong(DeployKeyError::None(name.clone()))),
                        },
                        DeployKeyChange::AddHost { host, .. } => {
                            let key = host_key.unwrap_or_default();
                            let (_, is_new) = store.make(project.id, &name, &own).map_err(wrong)?;
                            let (info, _) = store.add_host(project.id, &name, &host, &key).map_err(wrong)?;
                            let recorded = HostKeyRow { host: host.to_string(), fingerprint: fingerprint(&key) };
                            Ok(DeployKeyView { is_new, recorded: Some(recorded), ..view(info) })
                        }
                        DeployKeyChange::ForgetHost { host } => {
                            Ok(view(store.forget_host(project.id, &name, &host).map_err(wrong)?))
                        }
                    }
                };
                run_blocking(act).await
            }
        };
        match done {
            Ok(view) => Ok(view.into()),
            Err(error) => {
                control.audit(entry.ended(AuditOutcome::Failed, &error.message)).await;
                Err(error)
            }
        }
    }
}

/// Returns the host key that the caller gives, or else the key that the host shows.
async fn host_key(host: &HostPort, given: Option<&str>) -> Result<String, CommandError> {
    match given {
        Some(given) => given_host_key(given, host).map_err(|why| {
            usage(format!("cannot record the key of {host}: {why}"))
                .hint("give the key as one line, such as `ssh-ed25519 AAAA...` or a line of known_hosts")
        }),
        None => shown_host_key(host).await.map_err(|why| {
            refused(format!("cannot read the host key of {host}: {why}"))
                .hint("check the name and the port, or give the key itself with --host-key")
        }),
    }
}

fn of_deploy_key(error: &DeployKeyError, project: &ProjectName) -> CommandError {
    let kind = match error {
        DeployKeyError::None(_) | DeployKeyError::NoHost(_) => ErrorKind::NotFound,
        DeployKeyError::OtherHostKey { .. } | DeployKeyError::TooManyHosts => ErrorKind::Refused,
        _ => ErrorKind::Internal,
    };
    error.hint(project).into_iter().fold(CommandError::new(kind, chain(error)), CommandError::hint)
}
