//! The worker role: takes the descriptors that the keeper passed and calls the subsystem that does the work.
//!
//! A worker is a separate process, which reads hostile bytes in a sandbox as an unprivileged user.

mod fill;
mod sweep;

use std::{fs::File, io, process::ExitCode};

use crate::{
    backup, buildpack, drift, git,
    host::launch::{WorkerInput, read_job, write_report},
    release::{bundle, check, install, pack, sync},
    runtime, space, watch,
};

/// Runs the worker of `role`, which is the keeper's argument on the command line. Returns the exit code.
pub fn main(role: &str) -> ExitCode {
    match work(role) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // The server passes this text on to the client.
            let _ = io::Write::write_all(&mut io::stderr(), format!("larder: the {role} worker: {error}\n").as_bytes());
            ExitCode::from(70)
        }
    }
}

fn work(role: &str) -> io::Result<u8> {
    // The keeper starts the sweep worker for itself, so this worker has no job and no report.
    if role == "sweep" {
        return sweep::work().map(|()| 0);
    }
    if role == "unit" {
        return Err(control_unit());
    }
    let input = WorkerInput::take()?;
    if matches!(role, "build" | "bundle" | "run" | "task" | "patch") {
        fill::work()?;
    }
    match role {
        "git" => git::work(input.job, input.report),
        "checkout" => git::checkout::work(input.job, input.report),
        "watch" => watch::work(input.job, input.report),
        "source" => git::work_source(input.job, input.report),
        "build" => build(input),
        "bundle" => pack(input),
        "unpack" => unpack(input),
        "verify" => verify(input),
        "pack" => repack(input),
        "run" | "task" | "probe" => run(input),
        "drift" => look(input),
        "patch" => patch(input),
        "sync" => sync_directory(input),
        "dump" => dump(input),
        "restore" => restore(input),
        "measure" => measure(input),
        _ => Err(io::Error::other("there is no worker of this role")),
    }
}

/// Becomes the operator's `systemctl`. Returns only an error. The keeper sets the variables, and the job is not read.
fn control_unit() -> io::Error {
    let named = |name| std::env::var_os(name).unwrap_or_default();
    let program = named("LARDER_UNIT_COMMAND");
    let mut command = std::process::Command::new(&program);
    command.arg(named("LARDER_UNIT_ACTION")).arg("--").arg(named("LARDER_UNIT")).env_clear().env("PATH", named("PATH"));
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    io::Error::new(error.kind(), format!("cannot run {}: {error}", std::path::Path::new(&program).display()))
}

fn build(mut input: WorkerInput) -> io::Result<u8> {
    let report = buildpack::work(read_job(&mut input.job)?);
    write_report(&mut input.report, &report)?;
    Ok(u8::from(report.failure.is_some()))
}

fn pack(mut input: WorkerInput) -> io::Result<u8> {
    let job: bundle::BundleJob = read_job(&mut input.job)?;
    let mut files = input.extra.into_iter().map(File::from);
    let (Some(archive), Some(manifest)) = (files.next(), files.next()) else { return Err(missing()) };
    let previous = files.next().zip(files.next());
    let previous = previous.as_ref().map(|(archive, manifest)| (archive, manifest));
    let answer = bundle::work(job, &bundle::BundlePaths::from_environment(), &archive, &manifest, previous);
    write_report(&mut input.report, &answer)?;
    Ok(0)
}

fn unpack(mut input: WorkerInput) -> io::Result<u8> {
    let job: install::UnpackJob = read_job(&mut input.job)?;
    let mut files = input.extra.into_iter().map(File::from);
    let (Some(archive), Some(manifest)) = (files.next(), files.next()) else { return Err(missing()) };
    let previous = files.next();
    let answer = install::work(&job, &install::InstallPaths::from_environment(), &archive, &manifest, previous.as_ref());
    write_report(&mut input.report, &answer)?;
    Ok(0)
}

fn verify(mut input: WorkerInput) -> io::Result<u8> {
    let job: check::VerifyJob = read_job(&mut input.job)?;
    let mut files = input.extra.into_iter().map(File::from);
    let (Some(archive), Some(manifest)) = (files.next(), files.next()) else { return Err(missing()) };
    write_report(&mut input.report, &check::work(&job, &archive, &manifest))?;
    Ok(0)
}

fn repack(mut input: WorkerInput) -> io::Result<u8> {
    let job = read_job(&mut input.job)?;
    let files: Vec<File> = input.extra.into_iter().map(File::from).collect();
    let deploy = install::InstallPaths::from_environment().deploy;
    match job {
        pack::PackJob::Delta(job) => write_report(&mut input.report, &pack::delta(&job, &deploy, &files))?,
        pack::PackJob::Archive(job) => write_report(&mut input.report, &pack::archive(&job, &deploy, &files))?,
    }
    Ok(0)
}

fn look(mut input: WorkerInput) -> io::Result<u8> {
    let job: drift::LookJob = read_job(&mut input.job)?;
    let mut files = input.extra.into_iter().map(File::from);
    let manifest = files.next().ok_or_else(missing)?;
    let save = files.next().zip(files.next());
    let save = save.as_ref().map(|(text, archive)| (text, archive));
    write_report(&mut input.report, &drift::look_work(&job, &drift::DriftPaths::from_environment(), &manifest, save))?;
    Ok(0)
}

fn patch(mut input: WorkerInput) -> io::Result<u8> {
    let job: drift::ApplyJob = read_job(&mut input.job)?;
    let mut files = input.extra.into_iter().map(File::from);
    let text = files.next().ok_or_else(missing)?;
    let archive = files.next();
    write_report(&mut input.report, &drift::apply_work(&job, &drift::DriftPaths::from_environment(), &text, archive.as_ref()))?;
    Ok(0)
}

fn sync_directory(mut input: WorkerInput) -> io::Result<u8> {
    let job: sync::SyncJob = read_job(&mut input.job)?;
    let mut files = input.extra.into_iter().map(File::from);
    let (Some(manifest), Some(record)) = (files.next(), files.next()) else { return Err(missing()) };
    let previous = files.next();
    let answer = sync::work(&job, &sync::SyncPaths::from_environment(), &manifest, &record, previous.as_ref());
    write_report(&mut input.report, &answer)?;
    Ok(0)
}

fn dump(mut input: WorkerInput) -> io::Result<u8> {
    let paths = backup::DumpPaths::from_environment();
    let job = match read_job(&mut input.job)? {
        backup::DumpWork::Job(job) => job,
        backup::DumpWork::Stream(stream) => return Ok(backup::stream_work(&stream, &paths.data, &paths.points)),
    };
    let report = match (&job, input.extra.pop().map(File::from)) {
        (backup::DumpJob::Export { point, owner }, Some(out)) => backup::export_work(point, owner, &paths, out),
        (backup::DumpJob::Serve { point, owner }, Some(socket)) => backup::serve_work(point, owner, &paths, socket),
        (backup::DumpJob::Receive { owner }, Some(socket)) => backup::receive_work(owner, &paths, socket),
        (job, _) => backup::dump_work(job, &paths).map_err(|failure| failure.with_free_space(&paths.data)),
    };
    write_report(&mut input.report, &report)?;
    Ok(0)
}

fn restore(mut input: WorkerInput) -> io::Result<u8> {
    let job: backup::RestoreJob = read_job(&mut input.job)?;
    let paths = backup::RestorePaths::from_environment();
    let done = backup::restore_work(&job, &paths, sweep::empty);
    write_report(&mut input.report, &done.map_err(|failure| failure.with_free_space(&paths.data)))?;
    Ok(0)
}

fn measure(mut input: WorkerInput) -> io::Result<u8> {
    let job: space::MeasureJob = read_job(&mut input.job)?;
    write_report(&mut input.report, &space::work(&job)?)?;
    Ok(0)
}

fn run(mut input: WorkerInput) -> io::Result<u8> {
    let job = read_job(&mut input.job)?;
    let code = runtime::worker::work(job, input.extra.pop(), &mut input.report)?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn missing() -> io::Error {
    io::Error::other("a descriptor is missing")
}
