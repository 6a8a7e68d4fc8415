//! Tests that journals of earlier versions are read and recovered correctly after a cut at any line.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use super::{
    journal::{Journal, JournalState},
    live_app::{UpgradeCase, UpgradePlan},
    plan::Plan,
    runner,
};
use crate::model::{Environment, Mode, StepStatus};

/// Returns the name and the lines of each fixture of a version.
fn fixtures(version: &str) -> Vec<(String, Vec<String>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journals").join(version);
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let fixture = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect())
    };
    files.map(fixture).collect()
}

#[test]
fn switch_commits_a_deployment_without_a_hold() {
    let (_, lines) = fixtures("v0.1").into_iter().find(|(_, lines)| lines.concat().contains("deploy.switch")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(Journal::FILE), lines.first().unwrap().clone() + "\n").unwrap();
    let mut state = JournalState::read(directory.path()).unwrap();
    state.spec.as_mut().unwrap().commit_point = crate::model::StepName::from("deploy.resume");
    state.steps.insert(String::from("deploy.boot"), StepStatus::Done);
    assert!(!state.is_to_be_finished());
    state.steps.insert(String::from("deploy.switch"), StepStatus::Done);
    assert!(state.is_to_be_finished());
    state.facts.upgrade = Some(UpgradePlan::new(UpgradeCase::Online, ""));
    assert!(state.is_to_be_finished());
    // Requests wait until `deploy.resume` is done. An unwind before this step still restores the data, so only this step commits.
    state.facts.upgrade = Some(UpgradePlan::new(UpgradeCase::Held, ""));
    assert!(!state.is_to_be_finished());
    state.steps.insert(String::from("deploy.resume"), StepStatus::Done);
    assert!(state.is_to_be_finished());
}

/// The state of a journal, computed from its lines alone.
#[derive(Default)]
struct Expected {
    plan: Vec<String>,
    begun: BTreeSet<String>,
    done: BTreeSet<String>,
    /// Steps that have succeeded, even if they were reverted since.
    succeeded: BTreeSet<String>,
    undone: BTreeSet<String>,
    unwinds: bool,
    ended: Option<String>,
}

impl Expected {
    fn add(&mut self, line: &str) {
        let record: Value = serde_json::from_str(line).unwrap();
        let step = record["step"].as_str().unwrap_or_default().to_owned();
        match record["event"].as_str().unwrap() {
            "opened" => {
                self.plan = record["plan"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
            }
            "started" => drop(self.begun.insert(step)),
            "succeeded" => {
                self.done.insert(step.clone());
                self.succeeded.insert(step);
            }
            "failed" | "undo_failed" => self.unwinds = true,
            "undo_started" => {
                self.unwinds = true;
                self.done.remove(&step);
            }
            "undo_finished" => drop(self.undone.insert(step)),
            "ended" => self.ended = Some(record["outcome"].as_str().unwrap().to_owned()),
            "recovered" | "cleared" => {}
            other => panic!("{other}"),
        }
    }

    fn is_to_be_finished(&self) -> bool {
        self.done.contains("deploy.switch") && !self.unwinds
    }

    fn to_undo(&self) -> Vec<String> {
        let left = |step: &&String| self.begun.contains(*step) && !self.undone.contains(*step);
        self.plan.iter().rev().filter(left).cloned().collect()
    }
}

#[test]
fn journal_of_version_0_1_is_recovered_at_every_event() {
    let environment = Environment { mode: Mode::Final, ..Environment::of_shop("production", "main") };
    let all = fixtures("v0.1");
    assert!(all.len() >= 10, "{}", all.len());
    let (mut finished, mut unwound) = (0, 0);
    for (name, lines) in all {
        let directory = tempfile::tempdir().unwrap();
        let mut expected = Expected::default();
        let mut text = String::new();
        for (at, line) in lines.iter().enumerate() {
            text.push_str(line);
            text.push('\n');
            expected.add(line);
            fs::write(directory.path().join(Journal::FILE), &text).unwrap();
            let state = JournalState::read(directory.path()).unwrap_or_else(|error| panic!("{name}:{at}: {error}"));
            let spec = state.spec.clone().unwrap().for_environment(&environment).unwrap();
            assert_eq!((spec.version, spec.mode, spec.commit_point.as_str()), (1, Mode::Final, "deploy.switch"));
            let plan = Plan::of(&spec.plan).unwrap_or_else(|unknown| panic!("{name}: {unknown}"));
            assert_eq!(plan.names().iter().map(ToString::to_string).collect::<Vec<_>>(), expected.plan, "{name}");
            assert_eq!(state.is_to_be_finished(), expected.is_to_be_finished(), "{name}:{at}");
            let to_undo: Vec<_> = runner::to_undo(&plan, &state).map(|step| step.name().to_owned()).collect();
            assert_eq!(to_undo, expected.to_undo(), "{name}:{at}");
            // The state contains the facts that a step has recorded, not the defaults.
            let knows = |step: &str| expected.succeeded.contains(step);
            assert_eq!(state.facts.settings.is_some(), knows("gather.source") || knows("gather.recall"), "{name}:{at}");
            if knows("deploy.slot") {
                assert_eq!(state.facts.processes.len(), 2, "{name}:{at}");
            }
            if expected.is_to_be_finished() { finished += 1 } else { unwound += 1 }
        }
        let state = JournalState::read(directory.path()).unwrap();
        assert_eq!(
            state.ended.map(|(_, outcome)| serde_json::to_value(outcome).unwrap()["outcome"].as_str().unwrap().to_owned()),
            expected.ended,
            "{name}"
        );
        assert!(state.spec.unwrap().dry_run.is_empty() == (name != "dry-run"), "{name}");
    }
    assert!(finished > 50 && unwound > 200, "{finished} {unwound}");
}
