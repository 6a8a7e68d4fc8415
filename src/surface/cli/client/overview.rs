//! The command `larder status` on a developer's machine: all environments of a project side by side, over several servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::{command::TerminalUse, paint, text},
    ask::plain,
    sources::{ServerSource, Sources},
    ssh::SshCall,
    target::note_first_use,
};
use crate::{
    control::CommandError,
    model::{ProjectName, SshUrl, Target},
};

/// A server that is asked, with the reason.
#[derive(Debug)]
struct AskedServer {
    url: SshUrl,
    /// The projects whose environments are shown; all projects if `None`.
    projects: Option<BTreeSet<ProjectName>>,
    /// The names of the server on this machine.
    names: BTreeSet<String>,
}

/// The state of a server, or the reason why it is not known.
type Report = Result<Value, String>;

/// Shows the environments of all servers. Returns 0 if every server answered, otherwise 1. Returns `None` if no server is named.
pub(super) fn status(sources: &Sources, as_json: bool, is_quiet: bool, limit: Duration) -> Result<Option<u8>, CommandError> {
    let servers = asked(sources);
    if servers.is_empty() {
        return Ok(None);
    }
    let shared = sources.of(ServerSource::Repository).flat_map(|entry| &entry.hosts);
    shared.for_each(note_first_use);
    let bar = paint::counter(servers.len() as u64, "servers that answered", is_quiet);
    let one = |server: &AskedServer| {
        let report = report(&server.url, limit);
        bar.inc(1);
        report
    };
    let one = &one;
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let asking: Vec<_> = servers.iter().map(|server| scope.spawn(move || one(server))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap_or_else(|_| Err(String::from("the client failed")))).collect()
    });
    bar.finish_and_clear();
    let code = u8::from(reports.iter().any(Result::is_err));
    let shown = match as_json {
        true => format!("{:#}\n", as_value(&servers, &reports)),
        false => as_text(&servers, &reports, paint::has_colours(&io::stdout())),
    };
    // A closed output is no error.
    let _ = io::stdout().write_all(shown.as_bytes());
    Ok(Some(code))
}

/// Returns the servers that belong to the repository, or else all servers of the user's file. Each server is asked once.
fn asked(sources: &Sources) -> Vec<AskedServer> {
    let project_of =
        |id: &Option<Target>, url: &SshUrl| id.as_ref().map(|id| id.project.clone()).or_else(|| url.project().cloned());
    let entries = ServerSource::ALL.into_iter().flat_map(|kind| sources.of(kind).map(move |entry| (kind, entry)));
    let all: Vec<_> = entries
        .flat_map(|(kind, entry)| entry.hosts.iter().map(move |url| (kind, entry.name.as_str(), url, project_of(&entry.id, url))))
        .collect();
    let of_repository: BTreeSet<_> =
        all.iter().filter(|(kind, ..)| *kind != ServerSource::UserFile).filter_map(|(.., project)| project.clone()).collect();
    let belongs = |kind: ServerSource, project: &Option<ProjectName>| {
        kind != ServerSource::UserFile
            || of_repository.is_empty()
            || project.as_ref().is_some_and(|project| of_repository.contains(project))
    };
    let mut servers: BTreeMap<(String, Option<u16>), AskedServer> = BTreeMap::new();
    for (kind, name, url, project) in all {
        if !belongs(kind, &project) {
            continue;
        }
        let new = || AskedServer { url: url.clone(), projects: Some(BTreeSet::new()), names: BTreeSet::new() };
        let server = servers.entry((url.destination(), url.port())).or_insert_with(new);
        server.names.insert(name.to_owned());
        match project {
            Some(project) => drop(server.projects.as_mut().map(|projects| projects.insert(project))),
            None => server.projects = None,
        }
    }
    servers.into_values().collect()
}

/// Asks a server for its state. A question of `ssh`, such as for the key of an unknown server, counts as no answer.
fn report(url: &SshUrl, limit: Duration) -> Report {
    let words = ["--json", "status"].map(str::to_owned);
    let seconds = limit.as_secs().max(1);
    let call = SshCall { url, words: &words, terminal: TerminalUse::None };
    let captured = call.capture(limit, false).map_err(|error| error.message)?;
    let captured = captured.ok_or_else(|| format!("no answer within {}", text::count(seconds, "second")))?;
    if captured.code != 0 {
        let lines: Vec<_> = captured.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let unknown_key = lines.iter().any(|line| line.contains("Host key verification failed"));
        let why = match lines.last() {
            _ if unknown_key => format!("unknown host key: run `larder -r {url} whoami` once"),
            Some(line) => plain(line.strip_prefix("error: ").unwrap_or(line)),
            None => format!("ssh exited {}", captured.code),
        };
        return Err(why);
    }
    let value: Value = serde_json::from_slice(&captured.stdout).map_err(|error| format!("unreadable answer: {error}"))?;
    if value.get("environments").is_some_and(Value::is_array) { Ok(value) } else { Err(String::from("unreadable answer")) }
}

/// Returns the environments of a report that belong to the question.
fn environments<'r>(server: &AskedServer, report: &'r Value) -> Vec<&'r Value> {
    let belongs = |environment: &&Value| {
        let title = environment.get("environment").and_then(Value::as_str).unwrap_or_default();
        let project = title.split('/').next().unwrap_or_default();
        server.projects.as_ref().is_none_or(|projects| projects.iter().any(|known| known.as_str() == project))
    };
    report.get("environments").and_then(Value::as_array).into_iter().flatten().filter(belongs).collect()
}

fn as_value(servers: &[AskedServer], reports: &[Report]) -> Value {
    let one = |(server, report): (&AskedServer, &Report)| {
        let mut value = json!({ "server": server.url.server(), "url": server.url.to_string(), "names": server.names });
        if let Some(fields) = value.as_object_mut() {
            match report {
                Ok(report) => {
                    let shown = environments(server, report);
                    fields.insert(String::from("environments"), json!(shown));
                    fields.insert(String::from("disk_free"), report.get("disk_free").cloned().unwrap_or_default());
                    fields.insert(String::from("version"), report.get("version").cloned().unwrap_or_default());
                }
                Err(why) => drop(fields.insert(String::from("error"), json!(why))),
            }
        }
        value
    };
    servers.iter().zip(reports).map(one).collect()
}

fn as_text(servers: &[AskedServer], reports: &[Report], with_colours: bool) -> String {
    const HEADER: [&str; 9] =
        ["ENVIRONMENT", "SERVER", "LIVE", "SLOT", "LAST DEPLOYMENT", "DRIFT", "DISK", "RESTORE POINT", "STATE"];
    let mut rows = Vec::new();
    for (server, report) in servers.iter().zip(reports) {
        let place = server.url.server();
        let names = server.names.iter().cloned().collect::<Vec<_>>().join(", ");
        let empty = |state: String| {
            let mut row = vec![String::from("-"); HEADER.len()];
            for (cell, text) in [(0, names.clone()), (1, place.clone()), (HEADER.len() - 1, state)] {
                if let Some(cell) = row.get_mut(cell) {
                    *cell = text;
                }
            }
            row
        };
        match report {
            Err(why) => rows.push(empty(plain(why))),
            Ok(report) => {
                let shown = environments(server, report);
                if shown.is_empty() {
                    rows.push(empty(String::from("no environment that you may see")));
                }
                rows.extend(shown.into_iter().map(|environment| row(&place, environment, report)));
            }
        }
    }
    let alarming: Vec<bool> = rows.iter().map(|row| is_alarming(row)).collect();
    let table = text::table(&HEADER, rows);
    let line = |(index, line): (usize, &str)| {
        // The first line is the header.
        let is_marked = index.checked_sub(1).and_then(|row| alarming.get(row)).copied().unwrap_or_default();
        format!("{}\n", if with_colours && is_marked { paint::alarming(line) } else { line.to_owned() })
    };
    table.lines().enumerate().map(line).collect()
}

/// Returns true for a server without an answer, for a frozen environment, and for an environment whose last deployment failed.
fn is_alarming(row: &[String]) -> bool {
    let last = row.get(4).map(String::as_str).unwrap_or_default();
    // Only a server without an answer has no free disk space.
    let is_unknown = row.get(6).is_some_and(|disk| disk == "-");
    ["stuck", "refused", "rolled back"].iter().any(|word| last.starts_with(word))
        || is_unknown
        || row.last().is_some_and(|state| state.starts_with("frozen"))
}

fn row(place: &str, environment: &Value, report: &Value) -> Vec<String> {
    let string = |path: &str| environment.pointer(path).and_then(Value::as_str).map(plain);
    let number = |path: &str| environment.pointer(path).and_then(Value::as_u64);
    let dash = || String::from("-");
    let release = |base: &str| {
        let commit = string(&format!("{base}/commit"))?.chars().take(10).collect::<String>();
        Some(format!("v{} ({commit})", number(&format!("{base}/number"))?))
    };
    let last = string("/last/outcome").map(|outcome| {
        let by = string("/last/by").map(|by| format!(" by {by}")).unwrap_or_default();
        let at = string("/last/ended").or_else(|| string("/last/began"));
        let ago = at.and_then(|at| age(&at)).map(|ago| format!(", {ago} ago")).unwrap_or_default();
        format!("{outcome}{by}{ago}")
    });
    let drift = number("/drift/changes").map(|changes| match changes {
        0 => String::from("none"),
        changes => text::count(changes, "change"),
    });
    let free = report.get("disk_free").and_then(Value::as_u64).map(|free| format!("{} free", text::size(free)));
    let disk = [number("/disk").map(|used| format!("{} used", text::size(used))), free];
    let disk = disk.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let point = string("/backup/newest/taken").and_then(|at| age(&at)).map(|age| format!("{age} old"));
    let state = string("/state").unwrap_or_else(dash);
    let state = string("/note").map(|note| format!("{state}: {note}")).unwrap_or(state);
    vec![
        string("/environment").unwrap_or_else(dash),
        place.to_owned(),
        release("/live").unwrap_or_else(dash),
        string("/live/slot").unwrap_or_else(dash),
        last.unwrap_or_else(dash),
        drift.unwrap_or_else(dash),
        disk,
        point.unwrap_or_else(dash),
        state,
    ]
}

/// Returns the time since a moment, in words.
fn age(at: &str) -> Option<String> {
    let at: Timestamp = at.parse().ok()?;
    let seconds = Timestamp::now().duration_since(at).as_secs();
    Some(text::span(u64::try_from(seconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientEntry;

    fn entry(name: &str, hosts: &[&str], id: Option<&str>) -> ClientEntry {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        ClientEntry { name: name.to_owned(), hosts, id: id.map(|id| id.parse().unwrap()) }
    }

    #[test]
    fn each_server_is_asked_once_for_the_projects_of_the_repository() {
        use ServerSource::*;
        let entries = vec![
            (Repository, entry("production", &["ssh://a", "ssh://b"], Some("shop/production"))),
            (Repository, entry("staging", &["ssh://a"], Some("shop/staging"))),
            (GitRemotes, entry("origin", &["ssh://forge"], None)),
            (GitRemotes, entry("prod", &["ssh://a/shop"], None)),
            (UserFile, entry("other", &["ssh://c/blog"], None)),
            (UserFile, entry("lab", &["ssh://d"], Some("shop"))),
        ];
        let sources = Sources { entries, unusable: Vec::new() };
        let shown = |sources: &Sources| {
            let names = |server: AskedServer| {
                format!("{} {}", server.url.server(), server.names.into_iter().collect::<Vec<_>>().join("+"))
            };
            asked(sources).into_iter().map(names).collect::<Vec<_>>()
        };
        assert_eq!(shown(&sources), ["a prod+production+staging", "b production", "d lab"]);
        let user = sources.entries.into_iter().filter(|(kind, _)| *kind == UserFile).collect();
        assert_eq!(shown(&Sources { entries: user, unusable: Vec::new() }), ["c other", "d lab"]);
    }

    #[test]
    fn answer_of_a_strange_server_is_one_clean_row() {
        let server =
            AskedServer { url: "ssh://a".parse().unwrap(), projects: None, names: BTreeSet::from([String::from("prod")]) };
        let report = json!({ "environments": [
            { "environment": "shop/\u{1b}[2Jx\ny", "live": { "number": "x", "commit": 5 }, "state": "live", "note": "\u{202e}a" },
            7,
        ], "disk_free": -1 });
        let text = as_text(&[server], &[Ok(report)], false);
        let refusing = AskedServer { url: "ssh://b".parse().unwrap(), projects: None, names: BTreeSet::new() };
        let refused = as_text(&[refusing], &[Err(String::from("no\u{1b}[2J\nb: yes"))], false);
        assert!(refused.lines().count() == 2 && refused.contains("no[2Jb: yes"), "{refused}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("shop/[2Jxy") && text.contains("live: a"), "{text}");
    }
}
