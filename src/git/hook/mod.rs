//! git's hooks. git's receive-pack runs the hook scripts, each script runs the client, and the client asks the server through a socket.
//! The types to read first are [`Listener`], the server's socket, and [`HookSession`], a hook that waits for its answer.

mod client;
mod listener;
mod pktline;
mod recipe;
mod registry;
#[cfg(test)]
mod tests;
mod wire;

pub use client::main;
pub use listener::{HookSession, Listener};
pub use registry::{PushRegistry, PushTicket, PushToken};
pub use wire::{HookKind, HookRequest, MAX_REFS, RefChange, RefVerdict};

/// The hook scripts, each with its file name and content. The scripts are unpacked as executables to `lib/<version>/hooks`. There is no
/// post-receive hook, because the server has given its verdict before git would run this hook.
pub const SCRIPTS: &[(&str, &[u8])] = &[
    ("pre-receive", include_bytes!("../../../hooks/pre-receive")),
    ("proc-receive", include_bytes!("../../../hooks/proc-receive")),
];

#[cfg(test)]
mod script_tests {
    use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    #[test]
    fn every_hook_script_is_embedded() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks");
        let on_disk: BTreeSet<String> =
            std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let embedded: BTreeSet<String> = SCRIPTS.iter().map(|(name, _)| String::from(*name)).collect();
        assert_eq!(on_disk, embedded);
        for (name, content) in SCRIPTS {
            assert!(content.ends_with(b"\n"), "{name}");
            let mode = std::fs::metadata(directory.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{name} must be executable");
        }
    }

    #[test]
    fn hook_script_without_a_server_fails() {
        for (name, _) in SCRIPTS {
            let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks").join(name);
            let output = std::process::Command::new(shim).env_clear().output();
            assert!(!output.is_ok_and(|output| output.status.success()), "{name}");
        }
    }
}
