//! Places that deliverables are pulled from and published to.

use super::{not_found, refused};
use crate::{
    control::{Check, CommandError, Control, Grade, Kind, Reply, Target},
    model::{Environment, PublicKey, Remote, RemoteName, sanitise_line},
    remote::{Address, Place, RemoteError, ssh},
};

/// The most places of an environment.
const REMOTES: usize = 16;
/// The most bytes of another server's answer about its keys.
const KEYS_BYTES: u64 = 64 << 10;

/// An error of a place, as a person meets it.
pub(super) fn of_remote(error: &RemoteError) -> CommandError {
    let kind = match error {
        RemoteError::Address(_) => Kind::Usage,
        RemoteError::NotFound { .. } => Kind::NotFound,
        RemoteError::File(_) | RemoteError::GivenUp => Kind::Internal,
        _ => Kind::Refused,
    };
    let hinted = error.hints().into_iter();
    hinted.fold(CommandError::new(kind, crate::pipeline::chain(error)), CommandError::hint)
}

pub(super) fn list(control: &Control, target: &Target) -> Result<Reply, CommandError> {
    Ok(Reply::Remotes(control.environment(target)?.remotes))
}

pub(super) async fn add(control: &Control, target: &Target, mut remote: Remote) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let usage = |why: String| CommandError::new(Kind::Usage, why);
    let address: Address = remote.url.parse().map_err(|error| usage(format!("{error}")))?;
    if environment.remotes.iter().any(|known| known.name == remote.name) {
        return Err(refused(format!("{} has a remote {} already", environment.title(), remote.name))
            .hint(format!("`larder remote remove {target} {}` forgets it", remote.name)));
    }
    remote.url = address.to_string();
    remote.host_key = remote.host_key.as_deref().map(ssh::host_key).transpose().map_err(|error| {
        usage(error).hint("it is one line such as `ssh-ed25519 AAAA...`; `larder key show` on the other server prints it")
    })?;
    let server = matches!(address, Address::Ssh { .. });
    match (server, &remote.host_key) {
        (false, Some(_)) => return Err(usage(String::from("only a larder server, ssh://..., has a host key"))),
        (true, _) if remote.publish => {
            return Err(usage(String::from("a larder server pulls for itself; --publish is for directories and buckets")));
        }
        (true, None) => return Err(introduce(control, target, &environment, &remote).await),
        (true, Some(_)) if remote.trust.is_empty() => return Err(introduce(control, target, &environment, &remote).await),
        (false, None) if remote.trust.is_empty() && !remote.publish => {
            return Err(usage(String::from("nothing would be pulled from there, and nothing published"))
                .hint("--trust KEY says whose deliverables are accepted, --publish that ours go there"));
        }
        _ => {}
    }
    let place = open(control, &environment, &remote)?;
    control
        .change(|registry| {
            let projects = registry.projects.iter_mut().flat_map(|project| &mut project.environments);
            let known = projects.into_iter().find(|known| known.id == environment.id);
            let known = known.ok_or_else(|| not_found(format!("{} is gone", environment.title())))?;
            if known.remotes.len() >= REMOTES {
                return Err(refused(format!("{} has {REMOTES} remotes already", environment.title())));
            }
            known.remotes.retain(|other| other.name != remote.name);
            known.remotes.push(remote.clone());
            Ok(())
        })
        .await?;
    let tried = if remote.trust.is_empty() { String::new() } else { format!("\n{}", tried(&place).await) };
    Ok(Reply::Done(format!("{} has the remote {} now{tried}", environment.title(), remote.name)))
}

fn open(control: &Control, environment: &Environment, remote: &Remote) -> Result<Place, CommandError> {
    control.pipeline().services().places.open(remote, &environment.project).map_err(|error| of_remote(&error))
}

/// One line on whether a place can be used.
async fn tried(place: &Place) -> String {
    let listed = place.list().await;
    place.leave().await;
    match listed {
        Ok(offers) => format!("it offers {}", count(offers.len())),
        Err(error) => {
            let mut text = format!("but it cannot be used yet: {}", crate::pipeline::chain(&error));
            for hint in error.hints() {
                text.push_str(&format!("\nhint: {hint}"));
            }
            text
        }
    }
}

fn count(offers: usize) -> String {
    match offers {
        0 => String::from("no deliverable yet"),
        1 => String::from("one deliverable"),
        more => format!("{more} deliverables"),
    }
}

/// Looks at a server that is not trusted yet, and says what was seen and which command would trust it. Nothing is stored.
async fn introduce(control: &Control, target: &Target, environment: &Environment, remote: &Remote) -> CommandError {
    let mut seen = remote.clone();
    if seen.host_key.is_none() {
        let place = match open(control, environment, &seen) {
            Ok(place) => place,
            Err(error) => return error,
        };
        match place.list().await {
            Err(RemoteError::Unpinned { line, .. }) => seen.host_key = Some(line),
            Err(error) => return of_remote(&error),
            // It cannot be: without a pinned key nothing is asked.
            Ok(_) => return CommandError::new(Kind::Internal, "a server was trusted without a key"),
        }
    }
    let line = seen.host_key.clone().unwrap_or_default();
    let mut error = refused(format!("{} is not trusted yet; nothing was changed", remote.url));
    if remote.host_key.is_none() {
        error = error.hint(format!("it shows the host key {}", ssh::fingerprint(&line)));
    }
    let offered = match open(control, environment, &seen) {
        Ok(place) => signing_key(&place).await,
        Err(error) => return error,
    };
    let key = match (remote.trust.first(), offered) {
        (Some(given), _) => given.to_string(),
        (None, Ok(Some(key))) => {
            error = error.hint(format!("it says that it signs with {key}"));
            key.to_string()
        }
        (None, Ok(None)) => String::from("KEY"),
        (None, Err(why)) => {
            error = error.hint(crate::pipeline::chain(&why));
            for hint in why.hints() {
                error = error.hint(hint);
            }
            String::from("KEY")
        }
    };
    let name = &remote.name;
    error
        .hint("compare both with what `larder key show` prints on that server itself")
        .hint(format!("then run: larder remote add {target} {name} {} --host-key \"{line}\" --trust {key}", remote.url))
}

/// The key that a server says it signs with.
async fn signing_key(place: &Place) -> Result<Option<PublicKey>, RemoteError> {
    let words = ["key", "show", "--json"].map(str::to_owned);
    let answer = place.exec(&words).await?.output("keys", KEYS_BYTES).await;
    place.leave().await;
    match answer {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().and_then(|value| first_key(&value))),
        // An older larder has no such verb.
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

pub(super) async fn remove(control: &Control, target: &Target, name: &RemoteName) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    named(&environment, name)?;
    control
        .change(|registry| {
            let environments = registry.projects.iter_mut().flat_map(|project| &mut project.environments);
            for known in environments.filter(|known| known.id == environment.id) {
                known.remotes.retain(|remote| remote.name != *name);
            }
            Ok(())
        })
        .await?;
    Ok(Reply::Done(format!("{} has no remote {name} any more", environment.title())))
}

fn named<'a>(environment: &'a Environment, name: &RemoteName) -> Result<&'a Remote, CommandError> {
    let known = || environment.remotes.iter().map(|remote| remote.name.to_string()).collect::<Vec<_>>().join(", ");
    environment.remotes.iter().find(|remote| remote.name == *name).ok_or_else(|| {
        let error = not_found(format!("{} has no remote {name}", environment.title()));
        if environment.remotes.is_empty() { error } else { error.hint(format!("it has {}", known())) }
    })
}

pub(super) async fn check(control: &Control, target: &Target, name: &RemoteName) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let remote = named(&environment, name)?;
    let good = |what: &str, finding: String| Check { what: what.to_owned(), grade: Grade::Good, finding };
    let bad = |what: &str, finding: String| Check { what: what.to_owned(), grade: Grade::Bad, finding };
    let place = open(control, &environment, remote)?;
    let mut checks = Vec::new();
    match place.list().await {
        Ok(offers) => {
            checks.push(good("reached", place.title().to_owned()));
            if let Some(key) = &remote.host_key {
                checks.push(good("host key", ssh::fingerprint(key)));
            }
            let newest = offers
                .first()
                .map(|newest| format!(", the newest is {} of {}", sanitise_line(&newest.title()), newest.environment));
            checks.push(good("deliverables", format!("it offers {}{}", count(offers.len()), newest.unwrap_or_default())));
        }
        Err(error) => {
            let hints: Vec<_> = error.hints().into_iter().map(|hint| format!("; {hint}")).collect();
            checks.push(bad("reached", format!("{}{}", crate::pipeline::chain(&error), hints.concat())));
        }
    }
    if remote.trust.is_empty() {
        let finding = String::from("no key: nothing is pulled from there");
        checks.push(Check { what: String::from("trust"), grade: Grade::Warning, finding });
    } else {
        let keys: Vec<_> = remote.trust.iter().map(ToString::to_string).collect();
        checks.push(good("trust", keys.join(" ")));
    }
    if place.is_server() && !remote.trust.is_empty() {
        match signing_key(&place).await {
            Ok(Some(key)) if remote.trust.contains(&key) => checks.push(good("signing key", String::from("the trusted one"))),
            Ok(Some(key)) => checks.push(bad("signing key", format!("it signs with {key}, which is not trusted here"))),
            Ok(None) | Err(_) => {}
        }
    }
    place.leave().await;
    Ok(Reply::Checks(checks))
}
