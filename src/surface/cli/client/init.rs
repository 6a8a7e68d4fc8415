//! The commands `larder init`, `larder push` and `larder open`, which connect a clone with its servers.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;

use super::{
    arguments::{InitArgs, OpenArgs, PushArgs},
    ask::{KnownEnvironment, ask, environments},
    pillar::{PillarClone, is_pushed},
    sources::{REMOTE_KEY, ServerSource, Sources, git},
    target::ClientTarget,
};
use crate::{
    control::{CommandError, ErrorKind},
    model::{BranchName, EnvironmentName, SshUrl, Target, sanitise_text},
};

fn read() -> Result<Sources, CommandError> {
    Sources::read(Path::new("."))
}

fn refused(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorKind::Refused, message)
}

/// Creates the environment and the git remote, if they do not exist.
pub fn init(args: &InitArgs, as_json: bool, is_quiet: bool) -> Result<u8, CommandError> {
    if git(Path::new("."), &["rev-parse", "--git-dir"]).is_none() {
        return Err(
            CommandError::new(ErrorKind::NotFound, "this directory is in no git repository").hint("create one with `git init`")
        );
    }
    let target = ClientTarget::for_init(&args.to, &read)?;
    let id = target.environment();
    let project = match (&args.project, &id) {
        (Some(project), Some(id)) if *project != id.project => {
            return Err(refused(format!("{} names the project {}, not {project}", args.to, id.project))
                .hint(format!("run `larder init {} --to {}`, or name the server by its address", id.project, args.to)));
        }
        (Some(project), _) => project.clone(),
        (None, Some(id)) => id.project.clone(),
        (None, None) => {
            return Err(CommandError::new(ErrorKind::Usage, format!("no project is named: {} names a server only", args.to))
                .hint(format!("name the project, as in `larder init shop --to {}`", args.to)));
        }
    };
    // A host behind `@` selects a server; the remote has the name alone.
    let name = args.to.split('@').next().unwrap_or_default();
    let environment = environment_name(args, &target, id.as_ref(), name)?;
    let remote = if target.source.is_some() { name.to_owned() } else { environment.to_string() };
    let url = target.url.of_project(&project);
    let has_remote = check_remote(&remote, &url)?;
    target.announce(is_quiet);

    let known = environments(&url, project.as_str())?.unwrap_or_default();
    let existing = known.iter().find(|known| known.name == environment.as_str());
    if let (Some(existing), Some(branch)) = (existing, &args.branch)
        && existing.branch != branch.as_str()
    {
        return Err(refused(format!("{project}/{environment} exists and deploys the branch {}, not {branch}", existing.branch))
            .hint("run the command without --branch, or create another environment with --env"));
    }
    let branch = match existing {
        Some(existing) => existing.branch.clone(),
        None => {
            let branch = new_branch(args, &known, &environment)?;
            create(&url, project.as_str(), &environment, &branch, &args.mode)?;
            branch.to_string()
        }
    };
    if !has_remote {
        run_git(&["remote", "add", "--", &remote, &url.to_string()])?;
    }
    run_git(&["config", &format!("remote.{remote}.{REMOTE_KEY}"), &format!("{project}/{environment}")])?;
    let view = json!({
        "environment": format!("{project}/{environment}"),
        "branch": branch,
        "created": existing.is_none(),
        "remote": remote,
        "url": url.to_string(),
        "remote_added": !has_remote,
    });
    let was = |is_new: bool, verb: &str| if is_new { format!("was {verb}") } else { String::from("exists already") };
    let text = format!(
        "{project}/{environment} {} on {}; it deploys the branch {branch}\nthe git remote {remote} {}: {url}\n\nDeploy with:\n  larder push {remote}\n",
        was(existing.is_none(), "created"),
        url.server(),
        was(!has_remote, "added"),
    );
    print(&if as_json { format!("{view:#}\n") } else { text });
    Ok(0)
}

fn environment_name(
    args: &InitArgs,
    target: &ClientTarget,
    id: Option<&Target>,
    name: &str,
) -> Result<EnvironmentName, CommandError> {
    let named = id.and_then(|id| id.environment.clone());
    let chosen = match (&args.env, named) {
        (Some(env), Some(named)) if *env != named => {
            return Err(refused(format!("{} names the environment {named}, not {env}", args.to))
                .hint("leave out --env, or name the server by its address"));
        }
        (Some(env), _) => return Ok(env.clone()),
        (None, named) => named,
    };
    let by_name = || match target.source {
        Some(ServerSource::UserFile) if id.is_none() => name.to_lowercase().parse(),
        _ => "production".parse(),
    };
    chosen.map_or_else(by_name, Ok).map_err(|error| {
        CommandError::new(ErrorKind::Usage, format!("cannot name the environment after the server: {error}"))
            .hint("name the environment with --env")
    })
}

/// Returns true if the git remote exists with the address, and false if it does not exist.
fn check_remote(remote: &str, url: &SshUrl) -> Result<bool, CommandError> {
    let Some(found) = git(Path::new("."), &["remote", "get-url", "--push", "--", remote]) else { return Ok(false) };
    let found = found.trim_end();
    match found.parse::<SshUrl>() {
        Ok(found) if found == *url => Ok(true),
        Ok(found) => Err(other_address(remote, &found.to_string(), url)),
        Err(error) => Err(other_address(remote, error.given(), url)),
    }
}

fn other_address(remote: &str, found: &str, url: &SshUrl) -> CommandError {
    refused(format!("the git remote {remote} has the address {found} (expected {url}); nothing was changed"))
        .hint(format!("change it with `git remote set-url {remote} {url}`, or rename it with `git remote rename {remote} NAME`"))
}

/// Returns the branch of a new environment: `main`, or the name of the environment if another environment deploys `main`.
fn new_branch(args: &InitArgs, known: &[KnownEnvironment], environment: &EnvironmentName) -> Result<BranchName, CommandError> {
    if let Some(branch) = &args.branch {
        return Ok(branch.clone());
    }
    let is_taken = known.iter().any(|known| known.branch == "main");
    let branch = if is_taken { environment.as_str() } else { "main" };
    branch.parse().map_err(|error| CommandError::new(ErrorKind::Usage, format!("{error}")).hint("name the branch with --branch"))
}

fn create(
    url: &SshUrl,
    project: &str,
    environment: &EnvironmentName,
    branch: &BranchName,
    mode: &str,
) -> Result<(), CommandError> {
    let words = ["project", "create", project, "--env", environment.as_str(), "--branch", branch.as_str(), "--mode", mode];
    let answer = ask(url, &words)?;
    if answer.code == 0 { Ok(()) } else { Err(answer.failed(url)) }
}

/// Pushes a commit to all hosts of an environment. Returns the exit status of git.
pub fn push(args: &PushArgs, remote: Option<&str>, is_quiet: bool) -> Result<u8, CommandError> {
    let sources = read()?;
    let targets = match args.name.as_deref().or(remote) {
        Some(name) if name.contains("://") => vec![ClientTarget::named(name, &read)?],
        Some(name) => ClientTarget::all_hosts(name, &sources)?,
        None => ClientTarget::only_with_all_hosts(&sources)?.ok_or_else(|| {
            CommandError::new(ErrorKind::NotFound, "this repository names no server to push to")
                .hint("create the project and its git remote with `larder init PROJECT --to ssh://larder@HOST:PORT`")
        })?,
    };
    let mut remaining = targets.iter();
    while let Some(target) = remaining.next() {
        let code = push_to(target, args, &sources, is_quiet)?;
        if code != 0 {
            let rest: Vec<_> = remaining.map(|target| target.url.server()).collect();
            if !rest.is_empty() {
                note(&format!("not pushed to: {}", rest.join(", ")));
            }
            return Ok(code);
        }
    }
    Ok(0)
}

fn push_to(target: &ClientTarget, args: &PushArgs, sources: &Sources, is_quiet: bool) -> Result<u8, CommandError> {
    let id = target.environment().ok_or_else(|| {
        CommandError::new(ErrorKind::Usage, format!("cannot push to {}: no project is named there", target.url.server()))
            .hint("add the project to the address, or `id: PROJECT/ENVIRONMENT` to ~/.config/larder/config.yml")
    })?;
    target.announce(is_quiet);
    let url = target.url.of_project(&id.project);
    let known = environments(&url, id.project.as_str())?;
    let found = known.unwrap_or_default().into_iter().find(|known| match &id.environment {
        Some(name) => known.name == name.as_str(),
        None => known.is_default,
    });
    let found = found.ok_or_else(|| {
        CommandError::new(ErrorKind::NotFound, format!("there is no environment {id} on {} that you may see", url.server()))
            .hint(format!("create it with `larder init {} --to ...`", id.project))
    })?;
    let branch: BranchName = found.branch.parse().map_err(|error| CommandError::internal(&error))?;
    if args.reference.is_empty() || args.reference.starts_with(['-', '+', ':']) || args.reference.contains(':') {
        return Err(CommandError::new(ErrorKind::Usage, format!("{:?} is not a commit, a branch or a tag", args.reference)));
    }
    let pillar = match args.no_pillar {
        true => None,
        false => PillarClone::find(&id.project, &url)?,
    };
    let refname = format!("refs/heads/{branch}");
    let mut waits = false;
    if let Some(pillar) = &pillar {
        // Without new code, no deployment of code would use the values.
        waits = args.force || !is_pushed(&url.to_string(), &args.reference, &refname);
        let code = pillar.push(waits.then_some(found.name.as_str()), is_quiet)?;
        if code != 0 {
            note("the pillar was refused, so the code was not pushed");
            return Ok(code);
        }
    }
    // With the name of a git remote, git also updates the branches that it remembers of this remote.
    let named = sources.of(ServerSource::GitRemotes).find(|entry| entry.hosts == [url.clone()]);
    let place = named.map_or_else(|| url.to_string(), |entry| entry.name.clone());
    let mut push = Command::new("git");
    push.arg("push").args(args.force.then_some("--force")).args(is_quiet.then_some("--quiet")).arg("--").arg(place);
    push.arg(format!("{}:{refname}", args.reference));
    let status = push.status().map_err(|error| CommandError::new(ErrorKind::Internal, format!("cannot start git: {error}")))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    if code != 0 && waits {
        note(&format!(
            "the pillar was accepted and the code was not: {}/{} uses the new values with its next deployment",
            id.project, found.name
        ));
    }
    Ok(code)
}

/// Prints the address of an environment, and opens it in a browser.
pub fn open(args: &OpenArgs, remote: Option<&str>, as_json: bool, is_quiet: bool) -> Result<u8, CommandError> {
    let target = match remote {
        Some(name) => ClientTarget::named(name, &read)?,
        None => ClientTarget::only(&read()?)?.ok_or_else(|| {
            CommandError::new(ErrorKind::NotFound, "no server is named here").hint("name a server with `larder -r NAME open`")
        })?,
    };
    let id = args.target.clone().or_else(|| target.environment()).ok_or_else(|| {
        CommandError::new(ErrorKind::Usage, "no project is named").hint("name a project, as in `larder open shop`")
    })?;
    target.announce(is_quiet);
    let known = environments(&target.url, id.project.as_str())?.unwrap_or_default();
    let found = known.iter().find(|known| match &id.environment {
        Some(name) => known.name == name.as_str(),
        None => known.is_default,
    });
    // The address comes from a server, and becomes an argument of a program.
    let is_web = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
    let url = found.and_then(|found| found.urls.iter().find(is_web)).ok_or_else(|| {
        let server = target.url.server();
        CommandError::new(ErrorKind::NotFound, format!("there is no environment {id} on {server} that you may see"))
    })?;
    print(&if as_json { format!("{:#}\n", json!({ "url": url })) } else { format!("{url}\n") });
    let has_display =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    if !args.print && !as_json && has_display && io::stdout().is_terminal() {
        let mut browser = Command::new("xdg-open");
        browser.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(error) = browser.status() {
            note(&format!("cannot start a browser with xdg-open: {error}"));
        }
    }
    Ok(0)
}

fn run_git(words: &[&str]) -> Result<(), CommandError> {
    let failed = |why: String| refused(format!("cannot run git {}: {why}", words.join(" ")));
    let output = Command::new("git").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Prints text. A closed output is no error.
fn print(text: &str) {
    let _ = io::stdout().write_all(sanitise_text(text).as_bytes());
}

fn note(text: &str) {
    let _ = io::stderr().write_all(sanitise_text(&format!("note: {text}\n")).as_bytes());
}
