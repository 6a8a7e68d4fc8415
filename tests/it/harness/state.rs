//! The state of a world, on the disk and in processes. Tests compare the states before and after an action.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{World, processes};

/// The part of an environment's state that a failed deployment must not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The names in `deploy/`, `releases/`, `archives/` and `slots/`, the targets of links, and the content of `metadata.yml`.
    pub files: BTreeMap<String, String>,
    /// Branches, tags and the refs that keep the objects of releases.
    pub refs: Vec<String>,
    /// The processes of the application.
    pub processes: Vec<i32>,
}

impl Snapshot {
    /// Returns the state without the processes. A failed upgrade stops the processes of the live release and starts them again.
    pub fn without_processes(self) -> Snapshot {
        Snapshot { processes: Vec::new(), ..self }
    }
}

impl World {
    /// Returns the directory of a project's production environment.
    pub fn environment(&self, project: &str) -> PathBuf {
        self.root().join("projects").join(project).join("production")
    }

    /// Returns the state of a project's production environment.
    pub fn snapshot(&self, project: &str) -> Snapshot {
        let top = self.environment(project);
        let mut files = BTreeMap::new();
        for name in ["run", "deploy/current"] {
            let target = fs::read_link(top.join(name)).map(|target| target.display().to_string());
            files.insert(name.to_owned(), target.unwrap_or_else(|error| error.kind().to_string()));
        }
        files.insert(String::from("metadata.yml"), fs::read_to_string(top.join("metadata.yml")).unwrap_or_default());
        for directory in ["deploy", "releases", "archives", "slots"] {
            for name in names(&top.join(directory)) {
                files.entry(format!("{directory}/{name}")).or_default();
            }
        }
        Snapshot { files, refs: self.refs(project), processes: self.application(project) }
    }

    /// Returns the refs of the server's repository, including hidden refs.
    pub fn refs(&self, project: &str) -> Vec<String> {
        let repository = self.root().join("projects").join(project).join("git/project.git");
        let mut command = self.client("git");
        command.arg("--git-dir").arg(&repository).args(["for-each-ref", "--format=%(refname) %(objectname)"]);
        super::cli::Output::of(&mut command).ok().lines().map(str::to_owned).collect()
    }

    /// Returns the ports of an environment's processes, as the server lists them.
    pub fn ports(&self, project: &str) -> Vec<u64> {
        let listed = self.larder(&["ps", project, "--json"]).json();
        let mut ports: Vec<_> = listed.as_array().unwrap().iter().filter_map(|row| row["port"].as_u64()).collect();
        ports.sort_unstable();
        ports
    }

    /// Returns the processes of a project: the processes of the world whose variable `LARDER_PROJECT` names the project.
    pub fn application(&self, project: &str) -> Vec<i32> {
        let mark = format!("LARDER_PROJECT={project}");
        let marked = |pid: i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        processes::of(self.directory()).iter().map(|process| process.pid).filter(|pid| marked(*pid)).collect()
    }

    /// Returns the journals of all deployments to production, oldest first.
    pub fn journals(&self, project: &str) -> Vec<Vec<Value>> {
        let directory = self.environment(project).join("deployments");
        let journals = names(&directory).into_iter().map(|name| {
            let text = fs::read_to_string(directory.join(name).join("journal.jsonl")).unwrap_or_default();
            // The server may be writing the last line.
            let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            complete.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
        });
        let mut journals: Vec<Vec<Value>> = journals.collect();
        // The journals are sorted by their first event, because their names have a resolution of seconds.
        let began =
            |journal: &Vec<Value>| journal.first().and_then(|record| record["at"].as_str()?.parse::<jiff::Timestamp>().ok());
        journals.sort_by_key(|journal| (began(journal).is_none(), began(journal)));
        journals
    }

    /// Returns the last lines of the last journal of each project, for messages.
    pub fn last_deployments(&self) -> String {
        let projects = self.root().join("projects");
        let last = names(&projects).into_iter().filter_map(|project| {
            let directory = self.environment(&project).join("deployments");
            let newest =
                |name: &String| fs::metadata(directory.join(name).join("journal.jsonl")).and_then(|found| found.modified()).ok();
            let name = names(&directory).into_iter().max_by_key(newest)?;
            let text = fs::read_to_string(directory.join(&name).join("journal.jsonl")).ok()?;
            let lines: Vec<_> = text.lines().rev().take(3).collect();
            Some(format!("{project} {name}\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n")))
        });
        last.collect()
    }

    /// Returns the outcome of each deployment to production, oldest first; `None` for a deployment in flight.
    pub fn outcomes(&self, project: &str) -> Vec<Option<String>> {
        let ended = |journal: &Vec<Value>| {
            let last = journal.iter().rev().find(|record| record["event"] == "ended");
            last.and_then(|record| Some(record["outcome"].as_str()?.to_owned()))
        };
        self.journals(project).iter().map(ended).collect()
    }

    /// Returns true if every deployment to production has ended. A restarted server may still be recovering a deployment.
    pub fn has_ended(&self, project: &str) -> bool {
        self.outcomes(project).iter().all(Option::is_some)
    }

    /// Returns the planned steps of the last deployment to production.
    pub fn last_plan(&self, project: &str) -> Vec<String> {
        let journals = self.journals(project);
        let opened = &journals.last().unwrap()[0];
        opened["plan"].as_array().unwrap().iter().map(|step| step.as_str().unwrap().to_owned()).collect()
    }

    /// Returns the names of the steps of a deployment, as `larder plan` prints them.
    pub fn steps(&self, project: &str) -> Vec<String> {
        let plan = self.larder(&["plan", project]);
        let steps = plan.ok().lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
        let steps: Vec<_> = steps.map(str::to_owned).collect();
        assert!(steps.len() > 10 && steps.contains(&String::from("deploy.switch")), "{steps:?}");
        steps
    }

    /// Asserts a consistent state. `current` names a release whose archive, manifest and tree exist, the branch names the commit of this
    /// release, and `slots.json` names this release as live. Every tree has an archive, and every archive has a tree.
    #[track_caller]
    pub fn is_consistent(&self, project: &str) {
        self.is_whole(project, |trees, stored| trees == stored);
    }

    /// Asserts a consistent state, in which an archive need not have a tree: releases may have been pulled or imported and never installed.
    #[track_caller]
    pub fn is_consistent_with_a_store(&self, project: &str) {
        self.is_whole(project, |trees, stored| trees.iter().all(|tree| stored.contains(tree)));
    }

    #[track_caller]
    fn is_whole(&self, project: &str, fits: impl Fn(&[String], &[String]) -> bool) {
        super::until("every deployment has its end", || self.has_ended(project));
        let top = self.environment(project);
        let current = fs::read_link(top.join("deploy/current")).unwrap();
        let release = current.to_str().unwrap();
        assert!(top.join("deploy").join(release).is_dir(), "the tree of {release} is missing");
        for file in ["tar.zst", "manifest.json"] {
            assert!(top.join("releases").join(format!("{release}.{file}")).is_file(), "{release}.{file} is missing");
        }
        let manifest: Value =
            serde_json::from_slice(&fs::read(top.join("releases").join(format!("{release}.manifest.json"))).unwrap()).unwrap();
        let commit = manifest["commit"].as_str().unwrap();
        let branch = format!("refs/heads/main {commit}");
        assert!(self.refs(project).contains(&branch), "{branch} is not in {:?}", self.refs(project));
        let all = |directory: &str, ending: &str| -> Vec<String> {
            let names = names(&top.join(directory)).into_iter().filter(|name| name != "current");
            names.filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
        };
        // Releases are pruned one by one, so trees and archives may differ for a moment.
        let alike = || {
            let archives = all("releases", ".tar.zst");
            archives == all("releases", ".manifest.json") && fits(&all("deploy", ""), &archives)
        };
        let listing = || (names(&top.join("deploy")), names(&top.join("releases")));
        assert!(super::within(std::time::Duration::from_secs(30), alike), "trees and archives differ: {:#?}", listing());
        // A follow-up may still be writing a file. The name of a file starts with a dot until the file is complete.
        let whole = || names(&top).iter().all(|name| !name.starts_with('.'));
        assert!(super::within(std::time::Duration::from_secs(10), whole), "half-written files: {:?}", names(&top));
        let slots: Value = serde_json::from_slice(&fs::read(top.join("slots.json")).unwrap()).unwrap();
        let run = fs::read_link(top.join("run")).unwrap();
        let slot = run.components().nth(1).unwrap();
        let live = &slots[slot.as_os_str().to_str().unwrap()];
        assert!(live["use"] == "live" && live["release"] == release, "{} is not live: {slots:#}", run.display());
    }
}

/// Returns the names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
    let mut names: Vec<_> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
