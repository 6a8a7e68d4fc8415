//! The command `larder serve`, which is the first process of larder. The process reads the server file, collects the embedded files, and
//! becomes the keeper.
//!
//! The first process may read the server file, because the file belongs to the operator. The first process reads no data from a network or
//! a project.

use std::{path::Path, process::ExitCode};

use crate::{
    buildpack,
    config::{ByteSize, ServerConfig},
    control::{CommandError, ErrorKind},
    git,
    host::root::Root,
    keeper::{self, EmbeddedFile, KeeperConfig, KeeperError},
    pipeline::chain,
    surface::cli::ServeArgs,
};

/// Runs `larder serve`.
pub fn main(root: Root, args: ServeArgs) -> Result<ExitCode, CommandError> {
    let config = load(&root)?;
    let mut keeper = KeeperConfig::new(root.path().to_owned());
    keeper.ssh_listen = vec![args.ssh.unwrap_or(config.ssh.listen)];
    keeper.http_listen = vec![args.http.unwrap_or(config.http.listen)];
    keeper.server_args = vec!["--root".into(), root.path().into()];
    keeper.check_args = Some(vec![CHECK.into(), root.path().into()]);
    keeper.server_env = inherited_variables();
    for missing in config.paths.iter().filter(|path| !path.is_dir()) {
        tracing::warn!(path = %missing.display(), "a directory in `paths` of the server file does not exist, so sandboxes do not contain it");
    }
    keeper.host_paths = config.paths.clone();
    // The default limit depends on the memory of the machine, so the keeper computes the limit.
    keeper.build_memory = config.builds.memory.map(ByteSize::bytes);
    keeper.build_processes = u64::from(config.builds.pids);
    keeper.units = (config.services.program(), config.services.units.clone());
    keeper.lib = embedded_files();
    keeper::run(keeper).map_err(|error| {
        let command = CommandError::new(kind(&error), chain(&error));
        match error.hint() {
            Some(hint) => command.hint(hint),
            None => command,
        }
    })
}

/// The command that the keeper runs before a reload, so that the installed program checks the configuration.
pub const CHECK: &str = "check-server";

/// Runs `larder check-server ROOT`. Returns an error if the server of this program could not start under the running keeper: the versions
/// differ, or the server file is invalid.
pub fn check(root: &Root) -> Result<ExitCode, CommandError> {
    let (ours, keeper) = (env!("CARGO_PKG_VERSION"), std::env::var("LARDER_KEEPER").unwrap_or_default());
    if keeper != ours {
        let text = format!("cannot reload: the keeper is larder {keeper}, and the installed program is larder {ours}");
        return Err(CommandError::new(ErrorKind::Refused, text).hint("restart larder to change its version"));
    }
    load(root).map(|_| ExitCode::SUCCESS)
}

fn load(root: &Root) -> Result<ServerConfig, CommandError> {
    ServerConfig::load(&root.server_file()).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        CommandError::new(ErrorKind::Configuration, lines.join("\n"))
    })
}

/// Returns the kind of an error of the keeper. The kind determines the exit status of a keeper that cannot start.
fn kind(error: &KeeperError) -> ErrorKind {
    match error {
        KeeperError::Taken(_) => ErrorKind::Refused,
        KeeperError::Listen { .. }
        | KeeperError::Root { .. }
        | KeeperError::UnsafeRoot { .. }
        | KeeperError::Closed { .. }
        | KeeperError::Numbers { .. } => ErrorKind::Configuration,
        KeeperError::Setup(_) | KeeperError::Wait(_) => ErrorKind::Internal,
    }
}

/// Returns the environment variables that the server inherits: log level, backtraces, systemd's socket, access to buckets,
/// certificates, and the failpoints of a test build.
fn inherited_variables() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let mut names = vec!["LARDER_LOG", "NOTIFY_SOCKET", "RUST_BACKTRACE"];
    names.extend(BUCKETS);
    names.extend(CERTIFICATES);
    if fail::has_failpoints() {
        names.push("FAILPOINTS");
    }
    names.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?))).collect()
}

/// The variables that replace the certificates of the machine, by which the server checks mail servers and web servers.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// The variables from which S3 clients usually read credentials, region and address.
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

/// Returns the hooks and buildpacks that are embedded in the binary.
fn embedded_files() -> Vec<EmbeddedFile> {
    let hooks = git::hook::SCRIPTS.iter();
    let hooks = hooks.map(|(name, bytes)| EmbeddedFile { path: Path::new("hooks").join(name), bytes, executable: true });
    let packs = buildpack::builtin::FILES.iter().map(|file| EmbeddedFile {
        path: Path::new("buildpacks").join(file.path),
        bytes: file.text.as_bytes(),
        executable: file.executable,
    });
    hooks.chain(packs).collect()
}
