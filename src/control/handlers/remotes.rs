//! Remotes of an environment: other servers and shared locations that deliverables are pulled from or published to.

use serde::Serialize;

use super::doctor::{DoctorCheck, Grade};
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, ErrorKind, not_found, refused, usage},
        request::{Context, Reply, Request},
        state::Control,
    },
    model::{Access, Environment, PublicKey, Remote, RemoteName, Target, sanitise_line},
    pipeline::chain,
    remote::{Address, DeliverableStore, RemoteError, ssh},
};

/// The maximum number of remotes of one environment.
const MAX_REMOTES: usize = 16;
/// The maximum size of another server's answer about its keys, in bytes.
const MAX_KEYS_BYTES: u64 = 64 << 10;

/// The request to list the remotes of an environment.
#[derive(Debug)]
pub struct RemoteList {
    /// The environment.
    pub target: Target,
}

impl Request for RemoteList {
    type View = Vec<Remote>;
    const NAME: &'static str = "remote list";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<Remote>>, CommandError> {
        Ok(control.environment(&self.target)?.remotes.into())
    }
}

/// The request to add a remote to an environment.
#[derive(Debug)]
pub struct RemoteAdd {
    /// The environment.
    pub target: Target,
    /// The remote, whose address and host key may be written in any accepted form.
    pub remote: Remote,
}

/// A remote that was added.
#[derive(Debug, Serialize)]
pub struct RemoteAdded {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The name of the remote.
    pub remote: RemoteName,
    /// The number of deliverables that the remote offers; absent if nothing is pulled from the remote, or if the deliverables cannot be
    /// listed.
    pub offers: Option<usize>,
    /// The reason why the deliverables cannot be listed.
    pub problem: Option<RemoteProblem>,
}

/// The reason why a remote cannot be used.
#[derive(Debug, Serialize)]
pub struct RemoteProblem {
    /// The error with its causes.
    pub message: String,
    /// Instructions, one line each.
    pub hints: Vec<String>,
}

impl Request for RemoteAdd {
    type View = RemoteAdded;
    const NAME: &'static str = "remote add";

    // A remote determines whose code runs here, and which machines this server connects to.
    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<RemoteAdded>, CommandError> {
        let RemoteAdd { target, mut remote } = self;
        let environment = control.environment(&target)?;
        let address: Address = remote.url.parse().map_err(|error| usage(format!("{error}")))?;
        if environment.remotes.iter().any(|known| known.name == remote.name) {
            return Err(refused(format!(
                "cannot add the remote {}: {} has a remote of this name",
                remote.name,
                environment.title()
            ))
            .hint(format!("remove the existing remote first with `larder remote remove {target} {}`", remote.name)));
        }
        remote.url = address.to_string();
        remote.host_key = remote.host_key.as_deref().map(ssh::host_key).transpose().map_err(|error| {
            usage(error).hint("give one line such as `ssh-ed25519 AAAA...`, as `larder key show` prints it on the other server")
        })?;
        let is_server = matches!(address, Address::Ssh { .. });
        match (is_server, &remote.host_key) {
            (false, Some(_)) => {
                return Err(usage(format!(
                    "cannot use --host-key with {}: only a larder server (ssh://...) has a host key",
                    remote.url
                )));
            }
            (true, _) if remote.publish => {
                return Err(usage(format!(
                    "cannot use --publish with {}: a larder server pulls releases itself (expected a directory or a bucket)",
                    remote.url
                )));
            }
            (true, None) => return Err(introduce(control, &target, &environment, &remote).await),
            (true, Some(_)) if remote.trust.is_empty() => {
                return Err(introduce(control, &target, &environment, &remote).await);
            }
            (false, None) if remote.trust.is_empty() && !remote.publish => {
                return Err(usage(format!(
                    "cannot add the remote {}: a remote with neither a trusted key nor --publish has no effect",
                    remote.name
                ))
                .hint("give --trust KEY to pull deliverables that this key has signed, or --publish to publish"));
            }
            _ => {}
        }
        let place = open(control, &environment, &remote)?;
        let add = |known: &mut Environment| {
            if known.remotes.len() >= MAX_REMOTES {
                return Err(refused(format!(
                    "cannot add the remote {}: {} has {MAX_REMOTES} remotes (limit {MAX_REMOTES})",
                    remote.name,
                    known.title()
                )));
            }
            known.remotes.retain(|other| other.name != remote.name);
            known.remotes.push(remote.clone());
            Ok(())
        };
        control.change_environment(&environment, add).await?;
        let (offers, problem) = match remote.trust.is_empty() {
            true => (None, None),
            false => match try_listing(&place).await {
                Ok(offers) => (Some(offers), None),
                Err(problem) => (None, Some(problem)),
            },
        };
        Ok(RemoteAdded { environment: environment.title(), remote: remote.name, offers, problem }.into())
    }
}

/// Returns the error of a request for a remote, with its hints. An invalid address in the registry is no mistake in the command line, so
/// the kind of this error is `Refused`.
pub(super) fn of_remote(error: &RemoteError) -> CommandError {
    let kind = match error {
        RemoteError::NotFound { .. } => ErrorKind::NotFound,
        RemoteError::File(_) => ErrorKind::Internal,
        _ => ErrorKind::Refused,
    };
    error.hints().into_iter().fold(CommandError::new(kind, chain(error)), CommandError::hint)
}

fn open(control: &Control, environment: &Environment, remote: &Remote) -> Result<DeliverableStore, CommandError> {
    control.pipeline().services().places.open(remote, &environment.project).map_err(|error| of_remote(&error))
}

/// Lists the deliverables of a remote, and returns their number.
async fn try_listing(place: &DeliverableStore) -> Result<usize, RemoteProblem> {
    let listed = place.list().await;
    place.leave().await;
    listed.map(|offers| offers.len()).map_err(|error| RemoteProblem { message: chain(&error), hints: error.hints() })
}

/// Connects to a server that is not trusted yet. Returns an error whose hints name the server's keys and the command that trusts these
/// keys. Nothing is stored.
async fn introduce(control: &Control, target: &Target, environment: &Environment, remote: &Remote) -> CommandError {
    let mut seen = remote.clone();
    if seen.host_key.is_none() {
        let place = match open(control, environment, &seen) {
            Ok(place) => place,
            Err(error) => return error,
        };
        let listed = place.list().await;
        place.leave().await;
        match listed {
            Err(RemoteError::Unpinned { line, .. }) => seen.host_key = Some(line),
            Err(error) => return of_remote(&error),
            // This case cannot occur, because the client sends no command to a server without a pinned key.
            Ok(_) => {
                let why = format!("cannot check the host key of {}: the server answered without a pinned host key", remote.url);
                return CommandError::new(ErrorKind::Internal, why);
            }
        }
    }
    let line = seen.host_key.clone().unwrap_or_default();
    let mut error = refused(format!("cannot add the remote {}: {} is not trusted yet", remote.name, remote.url));
    if remote.host_key.is_none() {
        error = error.hint(format!("check the host key of the server: {}", ssh::fingerprint(&line)));
    }
    let offered = match open(control, environment, &seen) {
        Ok(place) => signing_key(&place).await,
        Err(error) => return error,
    };
    let key = match (remote.trust.first(), offered) {
        (Some(given), _) => given.to_string(),
        (None, Ok(Some(key))) => {
            error = error.hint(format!("check the signing key of the server: {key}"));
            key.to_string()
        }
        (None, Ok(None)) => String::from("KEY"),
        (None, Err(why)) => {
            error = error.hint(format!("solve this problem first: {}", chain(&why)));
            for hint in why.hints() {
                error = error.hint(hint);
            }
            String::from("KEY")
        }
    };
    let name = &remote.name;
    error
        .hint("compare both keys with the output of `larder key show` on that server")
        .hint(format!("then run: larder remote add {target} {name} {} --host-key \"{line}\" --trust {key}", remote.url))
}

/// Asks a server for its signing key.
async fn signing_key(place: &DeliverableStore) -> Result<Option<PublicKey>, RemoteError> {
    let words = ["key", "show", "--json"].map(str::to_owned);
    let asked = async { place.exec(&words).await?.output("keys", MAX_KEYS_BYTES).await };
    let answer = asked.await;
    place.leave().await;
    match answer {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().and_then(|value| first_key(&value))),
        // An older version of larder does not have the command `key show`.
        Err(RemoteError::Refused { code: 2, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn first_key(value: &serde_json::Value) -> Option<PublicKey> {
    match value {
        serde_json::Value::String(text) => text.parse().ok(),
        serde_json::Value::Array(values) => values.iter().find_map(first_key),
        serde_json::Value::Object(values) => values.values().find_map(first_key),
        _ => None,
    }
}

/// The request to remove a remote from an environment. Releases that were pulled from the remote stay.
#[derive(Debug)]
pub struct RemoteRemove {
    /// The environment.
    pub target: Target,
    /// The remote.
    pub name: RemoteName,
}

/// A remote that was removed.
#[derive(Debug, Serialize)]
pub struct RemoteRemoved {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The name of the remote.
    pub remote: RemoteName,
}

impl Request for RemoteRemove {
    type View = RemoteRemoved;
    const NAME: &'static str = "remote remove";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<RemoteRemoved>, CommandError> {
        let RemoteRemove { target, name } = self;
        let environment = control.environment(&target)?;
        named(&environment, &name)?;
        let remove = |known: &mut Environment| {
            known.remotes.retain(|remote| remote.name != name);
            Ok(())
        };
        control.change_environment(&environment, remove).await?;
        Ok(RemoteRemoved { environment: environment.title(), remote: name }.into())
    }
}

fn named<'a>(environment: &'a Environment, name: &RemoteName) -> Result<&'a Remote, CommandError> {
    let known = || environment.remotes.iter().map(|remote| remote.name.to_string()).collect::<Vec<_>>().join(", ");
    environment.remotes.iter().find(|remote| remote.name == *name).ok_or_else(|| {
        let error = not_found(format!("cannot find the remote {name}: {} has no such remote", environment.title()));
        if environment.remotes.is_empty() { error } else { error.hint(format!("name a remote of this environment: {}", known())) }
    })
}

/// The request to check that a remote can be used.
#[derive(Debug)]
pub struct RemoteCheck {
    /// The environment.
    pub target: Target,
    /// The remote.
    pub name: RemoteName,
}

impl Request for RemoteCheck {
    type View = Vec<DoctorCheck>;
    const NAME: &'static str = "remote check";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<DoctorCheck>>, CommandError> {
        let environment = control.environment(&self.target)?;
        let remote = named(&environment, &self.name)?;
        let place = open(control, &environment, remote)?;
        let mut checks = Vec::new();
        match place.list().await {
            Ok(offers) => {
                checks.push(DoctorCheck::new(Grade::Good, "reached", place.title()));
                if let Some(key) = &remote.host_key {
                    checks.push(DoctorCheck::new(Grade::Good, "host key", ssh::fingerprint(key)));
                }
                let newest = offers
                    .first()
                    .map(|newest| format!(", the newest is {} of {}", sanitise_line(&newest.title()), newest.environment));
                let finding = format!("the remote offers {}{}", count(offers.len()), newest.unwrap_or_default());
                checks.push(DoctorCheck::new(Grade::Good, "deliverables", finding));
            }
            Err(error) => {
                let hints: Vec<_> = error.hints().into_iter().map(|hint| format!("; {hint}")).collect();
                checks.push(DoctorCheck::new(Grade::Bad, "reached", format!("{}{}", chain(&error), hints.concat())));
            }
        }
        if remote.trust.is_empty() {
            checks.push(DoctorCheck::new(Grade::Warning, "trust", "no trusted key: nothing is pulled from this remote"));
        } else {
            let keys: Vec<_> = remote.trust.iter().map(ToString::to_string).collect();
            checks.push(DoctorCheck::new(Grade::Good, "trust", keys.join(" ")));
        }
        if place.is_server() && !remote.trust.is_empty() {
            match signing_key(&place).await {
                Ok(Some(key)) if remote.trust.contains(&key) => {
                    checks.push(DoctorCheck::new(Grade::Good, "signing key", "the server signs with a trusted key"));
                }
                Ok(Some(key)) => {
                    let finding = format!("the server signs with {key}, which is not trusted here");
                    checks.push(DoctorCheck::new(Grade::Bad, "signing key", finding));
                }
                Ok(None) | Err(_) => {}
            }
        }
        place.leave().await;
        Ok(checks.into())
    }
}

fn count(offers: usize) -> String {
    match offers {
        0 => String::from("no deliverable yet"),
        1 => String::from("one deliverable"),
        more => format!("{more} deliverables"),
    }
}
