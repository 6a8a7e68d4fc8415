//! The hooks that the binary brings along; the server unpacks them to its `lib/<version>/hooks`.

/// Every hook: its file name and its content. All are executable.
pub const HOOKS: &[(&str, &[u8])] = &[
    ("pre-receive", include_bytes!("../../hooks/pre-receive")),
    // post-receive is not used: by the time git would run it, the daemon has given the verdict itself.
    ("proc-receive", include_bytes!("../../hooks/proc-receive")),
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    #[test]
    fn no_hook_is_forgotten() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks");
        let on_disk: BTreeSet<String> =
            std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let embedded: BTreeSet<String> = HOOKS.iter().map(|(name, _)| String::from(*name)).collect();
        assert_eq!(on_disk, embedded);
        for (name, content) in HOOKS {
            assert!(content.ends_with(b"\n"), "{name}");
            let mode = std::fs::metadata(directory.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{name} must be executable");
        }
    }

    #[test]
    fn a_hook_without_a_server_refuses() {
        for (name, _) in HOOKS {
            let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks").join(name);
            let output = std::process::Command::new(shim).env_clear().output();
            assert!(!output.is_ok_and(|output| output.status.success()), "{name}");
        }
    }
}
