//! Parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("worker"), Some(role)) => larder::workers::work(&role),
        _ => ExitCode::from(2),
    }
}
