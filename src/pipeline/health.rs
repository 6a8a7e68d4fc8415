//! The health record of a release: the periods in which the release served, the checks that the release passed, and the exits of
//! its processes. The record is not stored, but computed from the journals and from the list of exits, `restarts.jsonl`.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    core::Pipeline,
    history::{History, Summary},
    journal::JournalState,
};
use crate::{
    config::HealthCheck,
    host::{files, root::EnvironmentPaths},
    model::{Environment, Exit, HealthRecord, Mode, PassedCheck, Period, ProcessRestart, ReleaseId},
    release::store,
    runtime::Label,
};

/// The maximum size of the list of exits in bytes. A longer list loses its older half.
const MAX_LIST: u64 = 256 * 1024;

/// A line of `restarts.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    release: ReleaseId,
    #[serde(flatten)]
    restart: ProcessRestart,
}

impl Pipeline {
    /// Appends an exit that larder did not request to the list of exits.
    pub fn process_ended(&self, label: &Label, exit: Exit) {
        let Some(queue) = self.queue(label.environment) else { return };
        let environment = queue.environment();
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        let restart = ProcessRestart { process: label.name(), at: Timestamp::now(), exit: exit.to_string() };
        if let Err(error) = note(&paths.restarts(), &Ended { release: label.release, restart }) {
            tracing::warn!(%error, "cannot record the exit of a process");
        }
        if environment.mode == Mode::Editable {
            return self.edited_process_exited(&environment, &label.name(), &exit);
        }
        self.site_exited(&environment, label, &exit);
    }

    /// Returns the signed health record of `release` in `environment`; `None` if the release never went live there, or if the digest of its
    /// tree cannot be read. This function reads files, so asynchronous code must call it on a blocking thread.
    pub fn health(&self, environment: &Environment, release: ReleaseId) -> Option<HealthRecord> {
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        let mut record = fold(environment, &paths, &self.history(environment.id), release, Timestamp::now())?;
        record.signature = Some(self.0.services.signing.sign(&record.statement()));
        Some(record)
    }
}

/// Computes the record from the journals and the list of exits.
fn fold(
    environment: &Environment,
    paths: &EnvironmentPaths,
    history: &History,
    release: ReleaseId,
    as_of: Timestamp,
) -> Option<HealthRecord> {
    let live: Vec<&Summary> = history.releases().collect();
    let story = |summary: &Summary| JournalState::read(&paths.deployment(summary.deployment)).unwrap_or_default();
    // A release serves from its own switch until the switch of the next release.
    let switched = |story: &JournalState, summary: &Summary| story.moments.get("deploy.switch").copied().or(summary.ended);
    let (mut served, mut checks, mut tree, mut number) = (Vec::new(), BTreeMap::new(), None, None);
    for (at, summary) in live.iter().enumerate().filter(|(_, summary)| summary.release == release) {
        let told = story(summary);
        number.get_or_insert(summary.number);
        tree = tree.or(told.facts.tree);
        let Some(since) = switched(&told, summary) else { continue };
        let next = at.checked_add(1).and_then(|next| live.get(next));
        let until = next.and_then(|next| switched(&story(next), next));
        served.push(Period { since, until });
        passed(&told, &mut checks);
    }
    let number = number?;
    let tree = tree.or_else(|| Some(store::read(&paths.manifest(release)).ok()?.tree))?;
    let restarts = read(&paths.restarts()).into_iter().filter(|ended| ended.release == release).map(|ended| ended.restart);
    Some(HealthRecord {
        format: HealthRecord::FORMAT,
        project: environment.project.clone(),
        environment: environment.name.clone(),
        release,
        number,
        tree,
        served,
        as_of,
        checks: checks.into_iter().map(|(name, passed)| PassedCheck { name: name.to_owned(), passed }).collect(),
        restarts: restarts.collect(),
        signature: None,
    })
}

/// Adds the checks that a deployment passed, each with its time. A check that the project does not define does not count as
/// passed.
fn passed(story: &JournalState, checks: &mut BTreeMap<&'static str, Timestamp>) {
    let Some(settings) = &story.facts.settings else { return };
    let tests = story.facts.scripts.iter().any(|script| script == "post_build");
    let known = [
        ("health", "deploy.boot", settings.health.check != HealthCheck::None),
        ("smoke", "post_deploy.smoke", !settings.smoke.is_empty()),
        ("tests", "post_build.script", tests),
    ];
    for (name, step, there) in known {
        if let Some(moment) = story.moments.get(step).filter(|_| there) {
            checks.insert(name, *moment);
        }
    }
}

/// Appends an exit to the list of exits. Drops the older half if the list is longer than `MAX_LIST`.
fn note(path: &Path, ended: &Ended) -> io::Result<()> {
    let mut line = serde_json::to_vec(ended)?;
    line.push(b'\n');
    // The line is written with one system call, so that a killed server leaves only whole lines.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)?.write_all(&line)?;
    if std::fs::metadata(path)?.len() > MAX_LIST {
        let all = read(path);
        let mut kept = Vec::new();
        for ended in all.iter().skip(all.len() / 2) {
            serde_json::to_writer(&mut kept, ended)?;
            kept.push(b'\n');
        }
        files::write_atomic(path, &kept, 0o600).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Reads the list of exits, oldest first. Lines that cannot be parsed are skipped.
fn read(path: &Path) -> Vec<Ended> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(io::Read::take(file, MAX_LIST.saturating_mul(2))).split(b'\n');
    lines.map_while(Result::ok).filter_map(|line| serde_json::from_slice(&line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::journal::Journal, *};
    use crate::model::{DeploymentId, Event, Live, Outcome, ReleaseNumber, Slot, Trigger};

    fn ended(second: i64, release: ReleaseId) -> Ended {
        let at = Timestamp::from_second(second).unwrap();
        Ended { release, restart: ProcessRestart { process: "web.1".to_owned(), at, exit: "exited 1".to_owned() } }
    }

    #[test]
    fn list_of_exits_is_bounded_and_keeps_the_newest_exits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("restarts.jsonl");
        let release = ReleaseId::new(Timestamp::UNIX_EPOCH);
        assert_eq!(read(&path), []);
        for second in 0..5000 {
            note(&path, &ended(second, release)).unwrap();
        }
        let found = read(&path);
        assert!(std::fs::metadata(&path).unwrap().len() <= MAX_LIST && found.len() > 500, "{}", found.len());
        assert_eq!(found.last(), Some(&ended(4999, release)));
        // The list gets a line that a power failure cut, and a line that is not an exit.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"rel\n[]\n").unwrap();
        assert_eq!(read(&path), found);
    }

    /// Writes the journal of a deployment that went live.
    fn deployed(paths: &EnvironmentPaths, release: ReleaseId, number: u32, facts: &serde_json::Value) -> DeploymentId {
        let id = DeploymentId::new(Timestamp::now());
        let mut journal = Journal::open(&paths.deployment(id)).unwrap();
        let number = ReleaseNumber(number);
        let opened = serde_json::json!({
            "event": "opened", "deployment": id, "trigger": Trigger::Push { by: "ann".parse().unwrap() }, "branch": "main",
            "commit": "a".repeat(40), "release": release, "number": number, "slot": Slot::Blue,
            "previous": Option::<Live>::None, "plan": [],
        });
        journal.append(serde_json::from_value(opened).unwrap()).unwrap();
        for step in ["post_build.script", "deploy.boot", "deploy.switch", "post_deploy.smoke"] {
            journal.append(Event::Started { step: step.to_owned() }).unwrap();
            journal.append(Event::Succeeded { step: step.to_owned(), facts: facts.clone() }).unwrap();
        }
        journal.append(Event::Ended { outcome: Outcome::Live { release, number } }).unwrap();
        id
    }

    #[test]
    fn record_has_periods_checks_and_restarts_of_journals() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment::of_shop("staging", "main");
        let paths = crate::host::root::Root::new(dir.path()).environment(&environment.project, &environment.name);
        std::fs::create_dir_all(paths.releases()).unwrap();
        let facts = |recipe: &str, scripts: &[&str]| {
            let settings = crate::config::Recipe::parse(recipe.as_bytes()).unwrap().for_environment(&environment.name);
            serde_json::json!({ "settings": settings, "scripts": scripts, "tree": crate::model::Digest::of(b"tree") })
        };
        let (old, new) = (ReleaseId::new(Timestamp::UNIX_EPOCH), ReleaseId::new(Timestamp::now()));
        deployed(&paths, old, 1, &facts("smoke: [/]", &["post_build", "deploy"]));
        deployed(&paths, new, 2, &facts("health: {type: none}", &["deploy"]));
        deployed(&paths, old, 3, &facts("smoke: [/]", &[]));
        for release in [old, new, old] {
            note(&paths.restarts(), &ended(7, release)).unwrap();
        }
        let history = History::read(&paths);
        let as_of = Timestamp::now();
        let record = |release| fold(&environment, &paths, &history, release, as_of);
        let first = record(old).unwrap();
        let second = record(new).unwrap();
        // The old release was live, was replaced, and is live again: it has two periods, and the second period is open.
        assert_eq!(first.served.len(), 2, "{:?}", first.served);
        assert_eq!(first.served[0].until, Some(second.served[0].since));
        assert_eq!(second.served[0].until, Some(first.served[1].since));
        assert_eq!(first.served[1].until, None);
        assert_eq!(first.number, ReleaseNumber(1));
        let names = |record: &HealthRecord| record.checks.iter().map(|check| check.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&first), ["health", "smoke", "tests"]);
        assert_eq!(names(&second), Vec::<String>::new(), "a check that the recipe does not define does not count as passed");
        assert_eq!((first.restarts.len(), second.restarts.len()), (2, 1));
        assert_eq!(record(ReleaseId::new(Timestamp::now())), None);
    }
}
