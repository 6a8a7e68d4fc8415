//! Replaces a git worker by git's own receive-pack or upload-pack.

use std::{fs::File, os::unix::process::CommandExt, path::Path};

use super::{
    job::{OWN_REFS, RepositoryKind, ServeLimits, Service},
    program::{self, GitSettings, WorkerPaths},
};

/// The reason why git could not be started. The client prints this reason.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The git program is missing.
    #[error("cannot start git: git is not installed on the server (expected git 2.29 or newer)")]
    NoGit,
    /// The job or the environment does not contain a value that the hooks need. Without the value, no hook could accept the push.
    #[error("cannot serve a push: {0} is missing")]
    Missing(&'static str),
    /// larder's binary, which the hooks run, could not be opened.
    #[error("cannot open larder's binary for the hooks")]
    Program(#[source] std::io::Error),
    /// git could not be executed.
    #[error("cannot start git")]
    Exec(#[source] std::io::Error),
}

/// The values that a push needs besides the repository.
#[derive(Debug)]
pub struct PushSettings<'a> {
    /// The directory of the hook scripts.
    pub hooks: &'a Path,
    /// The socket on which the server answers hooks.
    pub socket: &'a Path,
    /// The push token in text form.
    pub token: &'a str,
    /// The limits of the push.
    pub limits: ServeLimits,
}

/// Harmless faults in objects that old programs wrote (git-fsck(1), "FSCK MESSAGES"). git only warns about these faults and does not refuse
/// the push, because a fault can only be repaired by rewriting the history.
const HARMLESS_FAULTS: [&str; 8] = [
    "badTimezone",
    "badDateOverflow",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
];

/// Returns the settings of upload-pack, or of receive-pack for a push.
pub fn settings(protocol: Option<u8>, push: Option<&PushSettings<'_>>) -> GitSettings {
    let mut settings = GitSettings::new()
        .config("transfer.hideRefs", OWN_REFS)
        .config("transfer.fsckObjects", "true")
        .config("uploadpack.allowFilter", "true")
        .config("uploadpack.allowReachableSHA1InWant", "true")
        // Hooks in the repository's own directory `hooks` are never run.
        .config("core.hooksPath", push.map_or(Path::new("/nonexistent"), |push| push.hooks));
    if let Some(version @ 0..=2) = protocol {
        settings = settings.env("GIT_PROTOCOL", format!("version={version}"));
    }
    let Some(push) = push else { return settings };
    let settings =
        HARMLESS_FAULTS.into_iter().fold(settings, |settings, fault| settings.config(&format!("receive.fsck.{fault}"), "warn"));
    settings
        .config("receive.fsckObjects", "true")
        .config("receive.maxInputSize", push.limits.pack_bytes.to_string())
        // `refs` is the prefix of all refs, so proc-receive gives a verdict on every ref that is created, moved or deleted.
        .config("receive.procReceiveRefs", "refs")
        .config("receive.advertisePushOptions", "true")
        .config("receive.advertiseAtomic", "true")
        .config("receive.autogc", "false")
        .config("receive.updateServerInfo", "false")
        // The server decides, instead of git, if a branch may be deleted or rewound. A push of an older commit is a way to deploy that
        // commit again.
        .config("receive.denyDeletes", "false")
        .config("receive.denyNonFastForwards", "false")
        .config("receive.denyCurrentBranch", "ignore")
        .config("receive.denyDeleteCurrent", "ignore")
        .config("receive.shallowUpdate", "false")
        .config("receive.keepAlive", "5")
        // git flushes the disk only once for all objects of a small push.
        .config("core.fsyncMethod", "batch")
        .env("LARDER_HOOK_SOCKET", push.socket)
        .env("LARDER_PUSH_TOKEN", push.token)
}

/// Replaces this process by git. Returns only if git cannot be started. Descriptors 0, 1 and 2 are connected to the client.
pub fn serve(
    paths: &WorkerPaths,
    kind: RepositoryKind,
    service: Service,
    protocol: Option<u8>,
    token: Option<&str>,
    limits: ServeLimits,
) -> ServeError {
    let Some(git) = program::find() else { return ServeError::NoGit };
    let (mut command, program) = match service {
        Service::UploadPack => (settings(protocol, None).command(&git), "upload-pack"),
        Service::ReceivePack => {
            let Some(hooks) = &paths.hooks else { return ServeError::Missing("LARDER_HOOKS") };
            let Some(socket) = &paths.hook_socket else { return ServeError::Missing("LARDER_HOOK_SOCKET") };
            let Some(token) = token else { return ServeError::Missing("the push token") };
            if let Err(error) = leave_program() {
                return ServeError::Program(error);
            }
            let push = PushSettings { hooks, socket, token, limits };
            (settings(protocol, Some(&push)).command(&git), "receive-pack")
        }
    };
    command.arg(program).arg("--end-of-options").arg(paths.repository_of(kind));
    ServeError::Exec(command.exec())
}

/// The descriptor of larder's binary. The first line of each hook script names this descriptor as the script's interpreter. The number is
/// high because shells use descriptors up to about 20 themselves.
const PROGRAM: i32 = 64;

/// Opens larder's binary as descriptor [`PROGRAM`], which the hooks inherit. The binary therefore does not need a path in the sandbox.
fn leave_program() -> std::io::Result<()> {
    use std::os::fd::{AsRawFd, IntoRawFd};
    let program = rustix::io::fcntl_dupfd_cloexec(File::open("/proc/self/exe")?, PROGRAM)?;
    if program.as_raw_fd() != PROGRAM {
        return Err(std::io::Error::other(format!("descriptor {PROGRAM} is already in use")));
    }
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty())?;
    // The descriptor is not closed, because it must survive the exec.
    let _ = program.into_raw_fd();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hook_runs_the_inherited_program_and_fails_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let hook = directory.path().join("hook");
        std::fs::write(&hook, format!("#!/proc/self/fd/{PROGRAM} --exact\n")).unwrap();
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        // A separate shell opens the descriptor, so that the child processes of concurrent tests do not inherit the descriptor.
        let own = std::env::current_exe().unwrap();
        let run = |script: String| std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        let output = run(format!("exec {PROGRAM}<'{}'; exec '{}' --list", own.display(), hook.display()));
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("0 tests"), "{output:?}");
        assert!(!run(format!("exec '{}' --list", hook.display())).status.success());
    }

    #[test]
    fn hook_script_names_the_inherited_descriptor() {
        for (name, text) in crate::git::hook::SCRIPTS {
            assert!(text.starts_with(format!("#!/proc/self/fd/{PROGRAM} hook\n").as_bytes()), "{name}");
        }
    }

    #[test]
    fn push_without_hooks_is_refused() {
        let paths = WorkerPaths { repo: "/nonexistent".into(), source: None, hooks: None, hook_socket: None };
        let error = serve(&paths, RepositoryKind::Code, Service::ReceivePack, None, None, ServeLimits::default());
        assert!(matches!(error, ServeError::Missing("LARDER_HOOKS")), "{error}");
    }

    #[test]
    fn git_inherits_no_variables_of_the_server() {
        let command = settings(Some(2), None).command(Path::new("git"));
        let names: Vec<_> = command.get_envs().filter_map(|(name, _)| name.to_str()).collect();
        assert!(names.contains(&"GIT_PROTOCOL") && !names.contains(&"LD_PRELOAD") && !names.contains(&"LARDER_PUSH_TOKEN"));
        assert!(
            names.iter().all(|name| name.starts_with("GIT_") || ["PATH", "HOME", "LC_ALL", "TZ"].contains(name)),
            "{names:?}"
        );
    }
}
