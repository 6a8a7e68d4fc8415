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
    keeper::{self, LibFile},
    pipeline::chain,
    surface::cli::serve::Args,
};

/// Runs `larder serve`.
pub fn main(root: Root, args: Args) -> Result<ExitCode, CommandError> {
    let config = ServerConfig::load(&root.server_file()).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        CommandError::new(Kind::Configuration, lines.join("\n"))
    })?;
    let mut keeper = keeper::Config::new(root.path().to_owned());
    keeper.ssh_listen = if args.ssh.is_empty() { vec![config.ssh.listen] } else { args.ssh };
    keeper.http_listen = if args.http.is_empty() { vec![config.http_listen] } else { args.http };
    keeper.server_args = vec!["--root".into(), root.path().into()];
    keeper.server_env = passed_on();
    for missing in config.paths.iter().filter(|path| !path.is_dir()) {
        tracing::warn!(path = %missing.display(), "larder.yml names a directory in `paths` that is not there; sandboxes will not see it");
    }
    keeper.host_paths = config.paths.clone();
    keeper.build_memory = config.builds.memory.bytes();
    keeper.build_processes = config.builds.pids.into();
    keeper.lib = brought_along();
    keeper::run(keeper).map_err(|error| CommandError::new(Kind::Internal, chain(&error)))
}

/// What the server role may see of our environment: how much to log, and, in the test build, which faults to make.
fn passed_on() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let mut names = vec!["LARDER_LOG", "NOTIFY_SOCKET", "RUST_BACKTRACE"];
    if fail::has_failpoints() {
        names.push("FAILPOINTS");
    }
    names.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?))).collect()
}

/// Hooks and buildpacks.
fn brought_along() -> Vec<LibFile> {
    let hooks = git::embedded::HOOKS.iter();
    let hooks = hooks.map(|(name, bytes)| LibFile { path: Path::new("hooks").join(name), bytes, executable: true });
    let packs = buildpack::embedded::FILES.iter().map(|file| LibFile {
        path: Path::new("buildpacks").join(file.path),
        bytes: file.text.as_bytes(),
        executable: file.executable,
    });
    hooks.chain(packs).collect()
}
