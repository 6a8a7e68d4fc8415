//! The worker role: reads one sealed job and hands it to the trade that knows how.

use std::{io, process::ExitCode};

use crate::{host::launch::Errand, keeper::sweep, runtime};

/// Does the work of `role`, as `larder worker <role>`; only the keeper starts this.
pub fn work(role: &str) -> ExitCode {
    let done = match role {
        "sweep" => sweep::work().map(|()| ExitCode::SUCCESS),
        "run" | "task" => Errand::take().and_then(runtime::worker::work),
        _ => Err(io::Error::other(format!("{role:?} is not a kind of work"))),
    };
    done.unwrap_or_else(|error| {
        // Standard error of a worker is what its server reads.
        let _ = io::Write::write_all(&mut io::stderr(), format!("larder: {error}\n").as_bytes());
        ExitCode::from(70)
    })
}
