//! The first process of a server: reads the server file, brings along what the binary holds, and becomes the keeper.
//!
//! The server file is the operator's own, so it may be read here; nothing that a network or a project wrote ever is.

use std::{path::Path, process::ExitCode};

use crate::{
    buildpack,
    config::ServerConfig,
    control::{CommandError, Kind},
    git,
    host::root::Root,
    keeper::{self, KeeperError, LibFile},
    pipeline::chain,
    surface::cli::ServeArgs,
};

/// Runs `larder serve`.
pub fn main(root: Root, args: ServeArgs) -> Result<ExitCode, CommandError> {
    let config = ServerConfig::load(&root.server_file()).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        CommandError::new(Kind::Configuration, lines.join("\n"))
    })?;
    let mut keeper = keeper::Config::new(root.path().to_owned());
    keeper.ssh_listen = vec![args.ssh.unwrap_or(config.ssh.listen)];
    keeper.http_listen = vec![args.http.unwrap_or(config.http.listen)];
    keeper.server_args = vec!["--root".into(), root.path().into()];
    keeper.server_env = passed_on();
    for missing in config.paths.iter().filter(|path| !path.is_dir()) {
        tracing::warn!(path = %missing.display(), "larder.yml names a directory in `paths` that is not there; sandboxes will not see it");
    }
    keeper.host_paths = config.paths.clone();
    // What nobody wrote down depends on the machine.
    let usual = ServerConfig::default().builds.memory;
    keeper.build_memory = (config.builds.memory != usual).then(|| config.builds.memory.bytes());
    keeper.build_processes = u64::from(config.builds.pids);
    keeper.lib = brought_along();
    keeper::run(keeper).map_err(|error| CommandError::new(kind(&error), chain(&error)))
}

/// Who has to act when a server cannot start.
fn kind(error: &KeeperError) -> Kind {
    match error {
        KeeperError::Taken(_) => Kind::Refused,
        KeeperError::Listen { .. } | KeeperError::Root { .. } => Kind::Configuration,
        KeeperError::Setup(_) | KeeperError::Wait(_) => Kind::Internal,
    }
}

/// What the server role may see of our environment: how much to log, where buckets are and who may use them, and, in the test build,
/// which faults to make.
fn passed_on() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let mut names = vec!["LARDER_LOG", "NOTIFY_SOCKET", "RUST_BACKTRACE"];
    names.extend(BUCKETS);
    if fail::has_failpoints() {
        names.push("FAILPOINTS");
    }
    names.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?))).collect()
}

/// The variables by which every program that uses S3 is told what it needs to know.
const BUCKETS: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
];

/// Hooks and buildpacks.
fn brought_along() -> Vec<LibFile> {
    let hooks = git::embedded::HOOKS.iter();
    let hooks = hooks.map(|(name, bytes)| LibFile { path: Path::new("hooks").join(name), bytes, executable: true });
    let packs = buildpack::builtin::FILES.iter().map(|file| LibFile {
        path: Path::new("buildpacks").join(file.path),
        bytes: file.text.as_bytes(),
        executable: file.executable,
    });
    hooks.chain(packs).collect()
}
