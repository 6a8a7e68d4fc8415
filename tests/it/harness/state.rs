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

    /// Returns the content of all objects of a repository of the project shop: `project` or `pillar`.
    pub fn objects(&self, repository: &str) -> Vec<u8> {
        let mut git = self.client("git");
        git.arg("--git-dir").arg(self.root().join(format!("projects/shop/git/{repository}.git")));
        git.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
        let output = git.args(["cat-file", "--batch", "--batch-all-objects"]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
        output.stdout
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

    /// Returns the use of the disk by a project, as the server reports it.
    pub fn disk(&self, project: &str) -> Value {
        self.larder(&["--json", "disk", project]).json()["projects"][0].clone()
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
}

/// Returns the names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
    let mut names: Vec<_> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
