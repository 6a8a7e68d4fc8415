//! The process-wide settings of libgit2. Its setters are unsafe because they are not synchronised with its use.
#![allow(unsafe_code)]

use std::sync::Once;

/// Before the first use of libgit2: no configuration of the host, no caches that grow with what was pushed.
pub(super) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        use git2::ConfigLevel::{Global, ProgramData, System, XDG};
        for level in [ProgramData, System, XDG, Global] {
            // SAFETY: `Once` makes this the first use of libgit2 in this process, as every use goes through `refs::open`, and
            // all other callers wait here until it is over.
            let _ = unsafe { git2::opts::set_search_path(level, "/nonexistent") };
        }
        // SAFETY: as above. The keeper decides who runs where; in a user namespace the owner of a file may not even have a name.
        let _ = unsafe { git2::opts::set_verify_owner_validation(false) };
        // SAFETY: as above. Bytes, per process.
        let _ = unsafe { git2::opts::set_cache_max_size(32 << 20) };
    });
}
