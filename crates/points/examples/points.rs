//! Captures, verifies and restores a directory from the command line, and prints one JSON line with the result and its time:
//!
//! ```text
//! points capture STORE ID BASE SOURCE... [--previous ID]
//! points verify STORE ID
//! points restore STORE ID BASE TICKET
//! points into STORE ID PARENT NAME
//! points estimate STORE BASE SOURCE... [--previous ID]
//! points list STORE
//! points remove STORE ID
//! ```
//!
//! `POINTS_THREADS` sets the number of threads. This example is for measurements and manual tests; larder itself calls the
//! library.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{error::Error, ffi::OsStr, fs::File, os::fd::AsFd, path::Path, process::ExitCode, time::Instant};

use larder_points::{CaptureOptions, LookOptions, RestoreOptions, Source, Store, VerifyOptions, estimate, usage};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let begun = Instant::now();
    match run() {
        Ok(mut result) => {
            if let Value::Object(fields) = &mut result {
                fields.insert("seconds".into(), json!(begun.elapsed().as_secs_f64()));
            }
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Value, Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut previous = None;
    if let Some(at) = arguments.iter().position(|argument| argument == "--previous") {
        previous = arguments.get(at + 1).cloned();
        arguments.drain(at..(at + 2).min(arguments.len()));
    }
    let threads = std::env::var("POINTS_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let sources = |base: &str, names: &[&str]| -> Vec<Source> {
        let is_file = |name: &str| Path::new(base).join(name).is_file();
        names.iter().map(|name| if is_file(name) { Source::file(*name) } else { Source::directory(*name) }).collect()
    };
    Ok(match words.as_slice() {
        ["capture", store, id, base, names @ ..] if !names.is_empty() => {
            let store = Store::create(Path::new(store))?;
            let previous = previous.map(|id| store.point(&id)).transpose()?;
            let options = CaptureOptions { threads, ..CaptureOptions::default() };
            let dir = File::open(base)?;
            let captured = store.capture(id, &json!({}), dir.as_fd(), &sources(base, names), previous.as_ref(), &options)?;
            let is_exact = captured.is_exact();
            json!({"totals": captured.manifest.totals, "skipped": captured.manifest.skipped, "exact": is_exact})
        }
        ["verify", store, id] => {
            let report =
                Store::open(Path::new(store))?.point(id)?.verify(&VerifyOptions { threads, ..VerifyOptions::default() })?;
            let damages: Vec<_> = report.damages.iter().map(|damage| format!("{}: {}", damage.path, damage.fault)).collect();
            json!({"files": report.files, "bytes": report.bytes, "damaged": report.damaged, "damages": damages})
        }
        ["restore", store, id, base, ticket] => {
            let store = Store::open(Path::new(store))?;
            let options = RestoreOptions { threads, ..RestoreOptions::default() };
            let dir = File::open(base)?;
            let report = store.restore(&store.point(id)?, dir.as_fd(), ticket, None, &options)?;
            json!({"files": report.files, "bytes": report.bytes, "was_complete": report.was_complete})
        }
        ["into", store, id, parent, name] => {
            let options = RestoreOptions { threads, ..RestoreOptions::default() };
            let dir = File::open(parent)?;
            let report = Store::open(Path::new(store))?.point(id)?.restore_into(dir.as_fd(), OsStr::new(name), &options)?;
            json!({"files": report.files, "bytes": report.bytes, "lost_owners": report.lost_owners})
        }
        ["estimate", store, base, names @ ..] if !names.is_empty() => {
            let previous = previous.map(|id| Store::open(Path::new(store))?.point(&id)).transpose()?;
            let options = LookOptions { threads, ..LookOptions::default() };
            let found = estimate(File::open(base)?.as_fd(), &sources(base, names), previous.as_ref(), &options)?;
            json!({"files": found.files, "bytes": found.bytes, "copied_files": found.copied_files, "copied_bytes": found.copied_bytes})
        }
        ["list", store] => {
            let store = Store::open(Path::new(store))?;
            let points = store.list()?.iter().map(|id| store.point(id)).collect::<Result<Vec<_>, _>>()?;
            let used = usage(&points.iter().collect::<Vec<_>>())?;
            let shown = points.iter().zip(&used.points).map(|(point, used)| {
                json!({"id": used.id, "bytes": used.bytes, "unique": used.unique, "verified": point.is_verified()})
            });
            json!({"points": shown.collect::<Vec<_>>(), "total": used.total})
        }
        ["remove", store, id] => {
            Store::open(Path::new(store))?.remove(id)?;
            json!({"removed": id})
        }
        _ => {
            return Err(
                "usage: points capture|verify|restore|into|estimate|list|remove STORE ...; see the head of examples/points.rs"
                    .into(),
            );
        }
    })
}
