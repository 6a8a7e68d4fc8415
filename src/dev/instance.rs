//! One running process: its start by the worker of `runtime`, its log, its restarts after a crash, and its end.

use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr},
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    process::{Child, Command},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    checkout::Checkout,
    end,
    output::MergedLog,
    plan::{self, LocalProcess},
};
use crate::{
    host::launch::signal_of,
    runtime::{RunJob, worker},
};

/// The command of the child that becomes the process, which a person does not run.
pub const RUN_COMMAND: &str = "dev-run";

/// The first pause before a crashed process is started again. Each further crash doubles the pause.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The time after which a process counts as working, so that its next crash has the first pause.
const STEADY: Duration = Duration::from_secs(10);
/// The longest time between the stop signal and SIGKILL. A developer waits for the restart, and no visitor is served.
const MAX_GRACE: Duration = Duration::from_secs(5);
/// The interval of the attempts to connect to a process that starts.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// The time after which larder states that a web process does not listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(15);
/// The time limit for the last lines of a process after its end.
const DRAIN: Duration = Duration::from_millis(500);

/// Runs `larder dev-run`: reads the job from the standard input, and becomes the process.
pub fn main() -> ExitCode {
    // If `larder dev` is killed, its processes must not keep the ports. The signal stays set over `exec` (prctl(2)).
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    let status = child().unwrap_or_else(|error| {
        let _ = io::Write::write_all(&mut io::stderr(), format!("larder: cannot start the process: {error}\n").as_bytes());
        126
    });
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

fn child() -> io::Result<i32> {
    let mut message = Vec::new();
    io::stdin().read_to_end(&mut message)?;
    let job: RunJob = postcard::from_bytes(&message).map_err(io::Error::other)?;
    let nothing = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    worker::work(job, None, &mut io::sink())
}

/// A process that runs, or that starts again after a pause.
pub(super) struct LocalInstance {
    pub process: LocalProcess,
    stop: CancellationToken,
    kill: CancellationToken,
    task: JoinHandle<()>,
}

/// The values that all instances share.
#[derive(Clone)]
pub(super) struct InstanceContext {
    pub checkout: Checkout,
    pub log: MergedLog,
}

impl LocalInstance {
    /// Starts a process. `number` selects the colour of its lines.
    pub fn start(process: LocalProcess, port: u16, number: usize, context: &InstanceContext) -> LocalInstance {
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let supervised = Supervised {
            process: process.clone(),
            port,
            number,
            context: context.clone(),
            stop: stop.clone(),
            kill: kill.clone(),
        };
        let task = tokio::spawn(supervised.run());
        LocalInstance { process, stop, kill, task }
    }

    /// Asks the process to exit.
    pub fn ask(&self) {
        self.stop.cancel();
    }

    /// Returns a token that kills the process without a grace period.
    pub fn killer(&self) -> CancellationToken {
        self.kill.clone()
    }

    /// Stops the process, and waits until its group has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

struct Supervised {
    process: LocalProcess,
    port: u16,
    number: usize,
    context: InstanceContext,
    stop: CancellationToken,
    kill: CancellationToken,
}

impl Supervised {
    async fn run(self) {
        let name = self.process.name();
        let log = &self.context.log;
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            match self.once(&name, began).await {
                // The process was stopped.
                None => return,
                Some(Ok(status)) => {
                    if began.elapsed() >= STEADY {
                        pause = FIRST_PAUSE;
                    }
                    let seconds = pause.as_secs_f32();
                    log.error(&format!("{name} {}; it starts again in {seconds} s, or when a file is saved", how(status))).await;
                }
                Some(Err(error)) => log.error(&format!("cannot start {name}: {error}")).await,
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Runs the process until its end. Returns `None` if it was stopped.
    async fn once(&self, name: &str, began: Instant) -> Option<io::Result<ExitStatus>> {
        let log = &self.context.log;
        let mut child = match spawn(&self.process, self.port, &self.context.checkout).await {
            Ok(child) => child,
            Err(error) => return Some(Err(error)),
        };
        let group = child.id();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let copying = {
            let (log, name, number) = (log.clone(), name.to_owned(), self.number);
            tokio::spawn(async move {
                tokio::join!(
                    async {
                        if let Some(out) = out {
                            log.copy(&name, number, out).await
                        }
                    },
                    async {
                        if let Some(err) = err {
                            log.copy(&name, number, err).await
                        }
                    },
                );
            })
        };
        let announced = async {
            if self.process.kind.is_web() {
                announce(name, self.port, began, log).await;
            }
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            status = child.wait() => Some(status),
            () = self.stop.cancelled() => None,
            () = announced => None,
        };
        if ended.is_none()
            && let Some(group) = group
        {
            end::signal_group(group, signal_of(self.process.stop.signal));
            let grace = self.process.stop.grace.get().min(MAX_GRACE);
            tokio::select! {
                _ = child.wait() => {}
                () = tokio::time::sleep(grace) => log.say(&format!("{name} did not exit within {} s and is killed", grace.as_secs_f32())).await,
                () = self.kill.cancelled() => {}
            }
        }
        if let Some(group) = group {
            end::signal_group(group, Signal::KILL);
        }
        let _ = child.wait().await;
        let _ = tokio::time::timeout(DRAIN, copying).await;
        ended
    }
}

async fn spawn(process: &LocalProcess, port: u16, checkout: &Checkout) -> io::Result<Child> {
    let mut job = process.job.clone();
    job.env.push((String::from("PORT"), port.to_string()));
    job.env.push((String::from("LARDER_PROCESS"), process.name()));
    let mut command = command(checkout)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    send(&mut child, &job).await?;
    Ok(child)
}

/// Returns the command that reads a job and becomes the process. The process inherits the developer's environment without the variables of
/// larder.
pub(super) fn command(checkout: &Checkout) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command.envs(plan::defaults()).env("PATH", plan::search_path()).env("LARDER_APP", &checkout.root);
    command.arg(RUN_COMMAND).current_dir(&checkout.root).stdin(Stdio::piped()).process_group(0);
    Ok(command)
}

/// Sends the job to the child.
pub(super) async fn send(child: &mut Child, job: &RunJob) -> io::Result<()> {
    let message = postcard::to_stdvec(job).map_err(io::Error::other)?;
    if let Some(mut input) = child.stdin.take() {
        // If the child does not read, its exit status says so.
        drop(input.write_all(&message).await);
    }
    Ok(())
}

/// Waits until the port accepts connections, and announces the address.
async fn announce(name: &str, port: u16, began: Instant, log: &MergedLog) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut is_said = false;
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(PROBE_INTERVAL).await;
        if began.elapsed() > LISTEN_TIMEOUT && !is_said {
            is_said = true;
            let seconds = LISTEN_TIMEOUT.as_secs();
            log.error(&format!("{name} does not listen on port {port} after {seconds} s")).await;
            log.error("hint: the process must listen on $PORT, at 127.0.0.1 or at all addresses").await;
        }
    }
    log.say(&format!("{name} is ready at http://{address} after {:.2} s", began.elapsed().as_secs_f32())).await;
}

fn how(status: ExitStatus) -> String {
    match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
        (Some(code), _) => format!("exited {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => String::from("ended"),
    }
}
