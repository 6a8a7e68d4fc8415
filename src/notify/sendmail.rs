//! Gives one mail to the program `sendmail` of this machine.

use std::process::{ExitStatus, Stdio};

use lettre::Message;
use tokio::{io::AsyncWriteExt, process::Command};

use super::delivery::DeliveryError;

/// The program.
const SENDMAIL: &str = "/usr/sbin/sendmail";
/// The search path of the program.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit statuses after which no attempt follows (sysexits.h): the content is wrong, the recipient or its host is unknown.
const PERMANENT: [i32; 3] = [65, 67, 68];

/// Returns the program that accepts mails.
fn program() -> String {
    fail::fail_point!("sendmail", |program| program.unwrap_or_default());
    SENDMAIL.to_owned()
}

/// Sends a mail. The program gets the sender and the recipients as arguments, the mail as its standard input, and no variable of the server,
/// because the server's variables may contain credentials. The program is killed if the caller drops the future.
pub(super) async fn send(message: &Message) -> Result<(), DeliveryError> {
    let envelope = message.envelope();
    let mut command = Command::new(program());
    // Without `-i`, a line that is a dot would end the mail.
    command.arg("-i");
    if let Some(from) = envelope.from() {
        command.arg("-f").arg(from);
    }
    command.arg("--").args(envelope.to());
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = |why: &dyn std::fmt::Display| DeliveryError::temporary(format!("cannot run {}: {why}", program()));
    let mut process = command.spawn().map_err(|error| failed(&error))?;
    let mut input = process.stdin.take().ok_or_else(|| failed(&"the program has no standard input"))?;
    // Programs of this kind read lines that end as all lines on this machine do.
    let mail = String::from_utf8_lossy(&message.formatted()).replace("\r\n", "\n");
    let write = async move {
        input.write_all(mail.as_bytes()).await?;
        input.shutdown().await
    };
    let (written, ended) = tokio::join!(write, process.wait_with_output());
    let ended = ended.map_err(|error| failed(&error))?;
    if !ended.status.success() {
        return Err(refusal(ended.status, &String::from_utf8_lossy(&ended.stderr)));
    }
    // A program that exits before it has read the whole mail has not accepted the mail.
    written.map_err(|error| failed(&format!("the program did not read the whole mail: {error}")))
}

/// Returns the error of a program that has refused a mail. `output` is its standard error.
fn refusal(status: ExitStatus, output: &str) -> DeliveryError {
    let said = output.lines().map(str::trim).find(|line| !line.is_empty()).map(|line| format!(": {line}")).unwrap_or_default();
    let why = format!("{} ended with {status}{said}", program());
    let is_permanent = status.code().is_some_and(|code| PERMANENT.contains(&code));
    if is_permanent { DeliveryError::permanent(why) } else { DeliveryError::temporary(why) }
}
