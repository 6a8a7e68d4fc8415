//! The worker role: takes the errand that the keeper prepared and hands it to the trade that knows how.
//!
//! Everything here runs in a sandbox, as an unprivileged user, on hostile bytes; nothing here is part of the server.

use std::{fs::File, io, process::ExitCode};

use crate::{
    buildpack, drift, git,
    host::launch::{Errand, read_job, write_report},
    keeper,
    release::{bundle, check, install, pack},
    runtime,
};

/// Does the work of `role`, as the keeper named it on the command line.
pub fn main(role: &str) -> ExitCode {
    match work(role) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!(role, %error, "a worker failed");
            // The server shows this to whoever waits for the worker.
            let _ = io::Write::write_all(&mut io::stderr(), format!("larder: the {role} worker: {error}\n").as_bytes());
            ExitCode::from(70)
        }
    }
}

fn work(role: &str) -> io::Result<u8> {
    // The keeper's own errand has no server behind it, so no job and no report.
    if role == "sweep" {
        return keeper::sweep::work().map(|()| 0);
    }
    let errand = Errand::take()?;
    if matches!(role, "build" | "bundle" | "run" | "task" | "patch") {
        keeper::fill::work()?;
    }
    match role {
        "git" => git::work(errand.job, errand.report),
        "source" => git::work_source(errand.job, errand.report),
        "build" => build(errand),
        "bundle" => pack(errand),
        "unpack" => unpack(errand),
        "verify" => verify(errand),
        "pack" => pack_again(errand),
        "run" | "task" => run(errand),
        "drift" => look(errand),
        "patch" => patch(errand),
        _ => Err(io::Error::other("there is no such worker")),
    }
}

fn build(mut errand: Errand) -> io::Result<u8> {
    let report = buildpack::work(read_job(&mut errand.job)?);
    write_report(&mut errand.report, &report)?;
    Ok(u8::from(report.failure.is_some()))
}

fn pack(mut errand: Errand) -> io::Result<u8> {
    let job: bundle::BundleJob = read_job(&mut errand.job)?;
    let mut files = errand.extra.into_iter().map(File::from);
    let (Some(archive), Some(manifest)) = (files.next(), files.next()) else { return Err(too_few()) };
    let previous = files.next().zip(files.next());
    let previous = previous.as_ref().map(|(archive, manifest)| (archive, manifest));
    let answer = bundle::work(job, &bundle::BundlePaths::from_environment(), &archive, &manifest, previous);
    write_report(&mut errand.report, &answer)?;
    Ok(0)
}

fn unpack(mut errand: Errand) -> io::Result<u8> {
    let job: install::UnpackJob = read_job(&mut errand.job)?;
    let mut files = errand.extra.into_iter().map(File::from);
    let (Some(archive), Some(manifest)) = (files.next(), files.next()) else { return Err(too_few()) };
    let previous = files.next();
    let answer = install::work(&job, &install::InstallPaths::from_environment(), &archive, &manifest, previous.as_ref());
    write_report(&mut errand.report, &answer)?;
    Ok(0)
}

fn verify(mut errand: Errand) -> io::Result<u8> {
    let job: check::VerifyJob = read_job(&mut errand.job)?;
    let mut files = errand.extra.into_iter().map(File::from);
    let (Some(archive), Some(manifest)) = (files.next(), files.next()) else { return Err(too_few()) };
    write_report(&mut errand.report, &check::work(&job, &archive, &manifest))?;
    Ok(0)
}

fn pack_again(mut errand: Errand) -> io::Result<u8> {
    let job = read_job(&mut errand.job)?;
    let files: Vec<File> = errand.extra.into_iter().map(File::from).collect();
    let deploy = install::InstallPaths::from_environment().deploy;
    match job {
        pack::PackJob::Delta(job) => write_report(&mut errand.report, &pack::delta(&job, &deploy, &files))?,
        pack::PackJob::Archive(job) => write_report(&mut errand.report, &pack::archive(&job, &deploy, &files))?,
    }
    Ok(0)
}

fn look(mut errand: Errand) -> io::Result<u8> {
    let job: drift::LookJob = read_job(&mut errand.job)?;
    let mut files = errand.extra.into_iter().map(File::from);
    let manifest = files.next().ok_or_else(too_few)?;
    let save = files.next().zip(files.next());
    let save = save.as_ref().map(|(text, archive)| (text, archive));
    write_report(&mut errand.report, &drift::look_work(&job, &drift::DriftPaths::from_environment(), &manifest, save))?;
    Ok(0)
}

fn patch(mut errand: Errand) -> io::Result<u8> {
    let job: drift::ApplyJob = read_job(&mut errand.job)?;
    let mut files = errand.extra.into_iter().map(File::from);
    let text = files.next().ok_or_else(too_few)?;
    let archive = files.next();
    write_report(&mut errand.report, &drift::apply_work(&job, &drift::DriftPaths::from_environment(), &text, archive.as_ref()))?;
    Ok(0)
}

fn run(mut errand: Errand) -> io::Result<u8> {
    let job = read_job(&mut errand.job)?;
    drop(errand.extra);
    let code = runtime::worker::work(job, &mut errand.report)?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn too_few() -> io::Error {
    io::Error::other("a file was not handed over")
}
