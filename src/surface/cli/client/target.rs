//! The choice of the server for a command: by its name, or the only server that a place names.

use std::io::{self, Write as _};

use super::sources::{ServerSource, Sources, user_directory};
use crate::{
    config::ClientEntry,
    control::{CommandError, ErrorKind},
    host::files,
    model::{SshUrl, Target, sanitise_text},
};

/// The maximum size of the record of known servers, in bytes. A longer record counts as empty.
const MAX_RECORD: u64 = 1 << 20;

/// A server, with the environment that commands without a project concern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientTarget {
    pub(super) url: SshUrl,
    id: Option<Target>,
    /// The place that names the server; absent if the command line contains the address.
    pub(super) source: Option<ServerSource>,
    /// The differences to other places, for the user.
    notes: Vec<String>,
}

impl ClientTarget {
    /// Returns the server with a name: an ssh address, or `NAME` or `NAME@HOST` of the first place that has the name.
    pub(super) fn named(text: &str, read: &dyn Fn() -> Result<Sources, CommandError>) -> Result<ClientTarget, CommandError> {
        if text.contains("://") {
            let url = text.parse::<SshUrl>();
            let url = url.map_err(|error| CommandError::new(ErrorKind::Usage, format!("cannot use the server: {error}")))?;
            return Ok(ClientTarget { url, id: None, source: None, notes: Vec::new() });
        }
        ClientTarget::in_sources(text, &read()?, ServerSource::ALL)
    }

    /// Returns the server with a name for `larder init`, which creates the git remote of this name: an existing git remote counts last.
    pub(super) fn for_init(text: &str, read: &dyn Fn() -> Result<Sources, CommandError>) -> Result<ClientTarget, CommandError> {
        if text.contains("://") {
            return ClientTarget::named(text, read);
        }
        ClientTarget::in_sources(text, &read()?, [ServerSource::Repository, ServerSource::UserFile, ServerSource::GitRemotes])
    }

    fn in_sources(text: &str, sources: &Sources, order: [ServerSource; 3]) -> Result<ClientTarget, CommandError> {
        let (name, host) = text.split_once('@').map_or((text, None), |(name, host)| (name, Some(host)));
        let entries = order.into_iter().flat_map(|kind| sources.entries.iter().filter(move |(known, _)| *known == kind));
        let mut named = entries.filter(|(_, entry)| entry.name == name);
        let Some((kind, entry)) = named.next() else { return Err(unknown(name, sources)) };
        let mut target = of_entry(*kind, entry, host)?;
        let is_known =
            |url: &SshUrl| entry.hosts.iter().any(|host| (host.destination(), host.port()) == (url.destination(), url.port()));
        for (other, differing) in named.filter(|(_, other)| !other.hosts.iter().all(is_known)) {
            let hosts = servers(differing);
            target.notes.push(format!("{} names other servers for {name}: {hosts}; {} is used", other.title(), kind.title()));
        }
        Ok(target)
    }

    /// Returns the only server of the first place that names servers. Returns an error if this place names several servers, and `None` if no
    /// place names a server.
    pub(super) fn only(sources: &Sources) -> Result<Option<ClientTarget>, CommandError> {
        for kind in ServerSource::ALL {
            let entries: Vec<_> = sources.of(kind).collect();
            match entries.as_slice() {
                [] => {}
                [entry] => return of_entry(kind, entry, None).map(Some),
                [first, ..] => {
                    let named: Vec<_> = entries.iter().map(|entry| format!("{} ({})", entry.name, servers(entry))).collect();
                    let error = format!("cannot choose a server: {} names several: {}", kind.title(), named.join(", "));
                    return Err(CommandError::new(ErrorKind::Usage, error)
                        .hint(format!("name one of them, as in `larder -r {} ...`", first.name)));
                }
            }
        }
        Ok(None)
    }

    /// Returns the servers with a name, one for each host of the environment.
    pub(super) fn all_hosts(text: &str, sources: &Sources) -> Result<Vec<ClientTarget>, CommandError> {
        let name = text.split('@').next().unwrap_or_default();
        let entries =
            ServerSource::ALL.into_iter().flat_map(|kind| sources.entries.iter().filter(move |(known, _)| *known == kind));
        match entries.into_iter().find(|(_, entry)| entry.name == name) {
            Some((kind, entry)) if !text.contains('@') => Ok(hosts_of(*kind, entry)),
            _ => Ok(vec![ClientTarget::in_sources(text, sources, ServerSource::ALL)?]),
        }
    }

    /// Returns the servers of the only environment that the first place names.
    pub(super) fn only_with_all_hosts(sources: &Sources) -> Result<Option<Vec<ClientTarget>>, CommandError> {
        for kind in ServerSource::ALL {
            let mut entries = sources.of(kind);
            if let (Some(entry), None) = (entries.next(), entries.next()) {
                return Ok(Some(hosts_of(kind, entry)));
            }
            if sources.of(kind).next().is_some() {
                break;
            }
        }
        Ok(ClientTarget::only(sources)?.map(|target| vec![target]))
    }

    /// Returns the environment that a command without a project concerns.
    pub(super) fn environment(&self) -> Option<Target> {
        let of_url = || Some(Target { project: self.url.project()?.clone(), environment: None });
        self.id.clone().or_else(of_url)
    }

    /// Writes to the standard error if a file of the repository names a server that this user has not used before, or if another place has
    /// another server of the same name. `is_quiet` omits the second note only.
    pub(super) fn announce(&self, is_quiet: bool) {
        let mut text = String::new();
        for note in self.notes.iter().filter(|_| !is_quiet) {
            text.push_str(&format!("note: {note}\n"));
        }
        // A closed standard error does not matter.
        let _ = io::stderr().write_all(sanitise_text(&text).as_bytes());
        if self.source == Some(ServerSource::Repository) {
            note_first_use(&self.url);
        }
    }
}

/// Writes to the standard error that a file of the repository names a server, if this user has not used the server before.
pub(super) fn note_first_use(url: &SshUrl) {
    if is_first_use(url) {
        let file = ServerSource::Repository.title();
        let text = format!("note: first use of the server {} ({url}), which {file} of this repository names\n", url.server());
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

fn hosts_of(kind: ServerSource, entry: &ClientEntry) -> Vec<ClientTarget> {
    let of_host = |url: &SshUrl| ClientTarget { url: url.clone(), id: entry.id.clone(), source: Some(kind), notes: Vec::new() };
    entry.hosts.iter().map(of_host).collect()
}

/// Returns true if the user has not used a server before, and records the server. If the record cannot be written, each use is the first.
fn is_first_use(url: &SshUrl) -> bool {
    let Some(directory) = user_directory("XDG_STATE_HOME", ".local/state") else { return true };
    let (path, line) = (directory.join("servers"), url.server());
    let known = files::read_limited(&path, MAX_RECORD).unwrap_or_default();
    if known.split(|byte| *byte == b'\n').any(|known| known == line.as_bytes()) {
        return false;
    }
    let recorded = files::ensure_dir(&directory, 0o700).and_then(|()| files::append(&path, 0o600));
    let _ = recorded.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    true
}

/// Returns the target of an entry. Returns an error if the entry has several hosts and `host` selects none or several of them.
fn of_entry(kind: ServerSource, entry: &ClientEntry, host: Option<&str>) -> Result<ClientTarget, CommandError> {
    let is_selected = |url: &&SshUrl| host.is_none_or(|host| host == url.host() || host == url.server());
    let selected: Vec<_> = entry.hosts.iter().filter(is_selected).collect();
    let name = &entry.name;
    match (selected.as_slice(), host) {
        ([url], _) => Ok(ClientTarget { url: (*url).clone(), id: entry.id.clone(), source: Some(kind), notes: Vec::new() }),
        ([], _) => {
            let error =
                format!("there is no host {} of {name}: {} names {}", host.unwrap_or_default(), kind.title(), servers(entry));
            Err(CommandError::new(ErrorKind::NotFound, error))
        }
        ([first, ..], _) => {
            let count = selected.len();
            let error = format!("cannot choose a server: {name} in {} has {count} hosts: {}", kind.title(), servers(entry));
            Err(CommandError::new(ErrorKind::Usage, error)
                .hint(format!("name one of them, as in `larder -r {name}@{} ...`", first.server())))
        }
    }
}

fn unknown(name: &str, sources: &Sources) -> CommandError {
    if let Some((_, why)) = sources.unusable.iter().find(|(known, _)| known == name) {
        return CommandError::new(ErrorKind::Configuration, format!("cannot use the git remote {name}: {why}"))
            .hint(format!("change the address with `git remote set-url {name} ssh://larder@HOST:PORT/PROJECT`"));
    }
    let error = format!(
        "there is no environment {name} in larder-environments.json, no git remote {name}, and no server {name} in ~/.config/larder/config.yml"
    );
    let mut error = CommandError::new(ErrorKind::NotFound, error);
    for kind in ServerSource::ALL {
        let names: Vec<_> = sources.of(kind).map(|entry| entry.name.as_str()).collect();
        if !names.is_empty() {
            error = error.hint(format!("names in {}: {}", kind.title(), names.join(", ")));
        }
    }
    error.hint("list the git remotes with `git remote -v`, or name an address: `larder -r ssh://larder@HOST:PORT/PROJECT ...`")
}

/// Lists the servers of an entry.
fn servers(entry: &ClientEntry) -> String {
    entry.hosts.iter().map(SshUrl::server).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, hosts: &[&str], id: Option<&str>) -> ClientEntry {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        ClientEntry { name: name.to_owned(), hosts, id: id.map(|id| id.parse().unwrap()) }
    }

    fn sources(entries: &[(ServerSource, ClientEntry)]) -> Sources {
        Sources {
            entries: entries.to_vec(),
            unusable: vec![(String::from("origin"), String::from("\"x\" is not an ssh address"))],
        }
    }

    fn named(text: &str, entries: &[(ServerSource, ClientEntry)]) -> Result<ClientTarget, CommandError> {
        ClientTarget::named(text, &|| Ok(sources(entries)))
    }

    #[test]
    fn server_is_found_by_address_then_repository_then_git_remote_then_user_file() {
        use ServerSource::*;
        let all = [
            (UserFile, entry("prod", &["ssh://user"], None)),
            (GitRemotes, entry("prod", &["ssh://remote/shop"], None)),
            (Repository, entry("prod", &["ssh://file"], Some("shop/production"))),
        ];
        let host = |text: &str, entries: &[_]| named(text, entries).unwrap().url.host().to_owned();
        assert_eq!(host("ssh://flag/shop", &all), "flag");
        assert_eq!(host("prod", &all), "file");
        assert_eq!(host("prod", &all[..2]), "remote");
        assert_eq!(host("prod", &all[..1]), "user");
        // The user reads that the other places differ.
        assert_eq!(named("prod", &all).unwrap().notes.len(), 2);
        assert_eq!(named("prod", &all).unwrap().environment().unwrap().to_string(), "shop/production");
        assert_eq!(named("prod", &all[..2]).unwrap().environment().unwrap().to_string(), "shop");
        assert_eq!(named("prod", &all[..1]).unwrap().environment(), None);
        let only = |entries: &[_]| ClientTarget::only(&sources(entries)).unwrap().map(|target| target.url.host().to_owned());
        assert_eq!(only(&all).unwrap(), "file");
        assert_eq!(only(&all[..2]).unwrap(), "remote");
        assert_eq!(only(&[(GitRemotes, entry("origin", &["ssh://forge"], None))]), None);
    }

    #[test]
    fn ambiguous_or_missing_server_is_refused_with_the_found_names() {
        use ServerSource::*;
        let several = [
            (Repository, entry("staging", &["ssh://a:22"], Some("shop/staging"))),
            (Repository, entry("production", &["ssh://b", "ssh://c:2222"], Some("shop"))),
        ];
        let shown = |error: CommandError| format!("{} {} {:?}", error.kind.exit_code(), error.message, error.hints);
        let text = shown(ClientTarget::only(&sources(&several)).unwrap_err());
        assert!(
            text.starts_with("2 ")
                && text.contains("larder-environments.json names several: staging (a:22), production (b, c:2222)"),
            "{text}"
        );
        assert!(text.contains("`larder -r staging ...`"), "{text}");
        let text = shown(named("production", &several).unwrap_err());
        assert!(
            text.contains("production in larder-environments.json has 2 hosts: b, c:2222")
                && text.contains("`larder -r production@b ...`"),
            "{text}"
        );
        assert_eq!(named("production@c", &several).unwrap().url.host(), "c");
        assert_eq!(named("production@c:2222", &several).unwrap().url.host(), "c");
        assert!(shown(named("production@d", &several).unwrap_err()).starts_with("4 there is no host d of production"));
        let text = shown(named("prod", &several).unwrap_err());
        assert!(text.starts_with("4 ") && text.contains("names in larder-environments.json: staging, production"), "{text}");
        let text = shown(named("origin", &several).unwrap_err());
        assert!(text.starts_with("5 cannot use the git remote origin") && text.contains("git remote set-url origin"), "{text}");
        assert!(shown(named("ssh://-oProxyCommand=id/shop", &several).unwrap_err()).starts_with("2 "));
    }
}
