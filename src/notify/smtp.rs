//! Sends one mail to one recipient. Every header is typed, so no text of a project can become a header or a recipient.

use std::{error::Error as _, fmt, time::Duration};

use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{
        Mailbox, MultiPart,
        header::{Header, HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Tls, TlsParameters},
        extension::ClientId,
    },
};

use super::{
    delivery::DeliveryError,
    message::{MailContent, MessageRecord},
    sendmail,
};
use crate::{
    config::{MailConfig, MailTransport},
    host::files::read_private,
};

/// The time limit of one delivery, from the connection to the last answer. RFC 5321 (section 4.5.3.2) allows several minutes for single
/// answers, but a delivery that is repeated later needs no longer limit.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit of the connection and of each command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of the file with the password, in bytes.
const MAX_PASSWORD: u64 = 1024;

/// The answers of a mail server that concern the login or the encryption, and not the message (RFC 4954, RFC 3207). An operator corrects the
/// cause, so the delivery is repeated.
const LOGIN_CODES: [u16; 4] = [530, 534, 535, 538];

/// The header that prevents automatic replies (RFC 3834, section 5).
#[derive(Debug, Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<AutoSubmitted, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(AutoSubmitted::name(), String::from("auto-generated"))
    }
}

/// Returns a mail as lettre's type.
fn compose(config: &MailConfig, record: &MessageRecord, content: MailContent) -> Result<Message, DeliveryError> {
    let address = |text: &str| text.parse::<Address>().map_err(DeliveryError::permanent);
    let mut message = Message::builder()
        .from(Mailbox::new(Some(String::from("larder")), address(config.from.as_str())?))
        .to(Mailbox::new(None, address(&record.to)?))
        .subject(record.subject.clone())
        .date(record.at.into())
        .message_id(Some(record.message_id.clone()))
        .header(AutoSubmitted);
    if let Some(last) = record.references.last() {
        message = message.in_reply_to(last.clone()).references(record.references.join(" "));
    }
    message.multipart(MultiPart::alternative_plain_html(content.text, content.html)).map_err(DeliveryError::permanent)
}

/// Sends a mail.
pub(super) async fn send(config: &MailConfig, record: &MessageRecord, content: MailContent) -> Result<(), DeliveryError> {
    let message = compose(config, record, content)?;
    let sending = async {
        match &config.transport {
            MailTransport::Sendmail => sendmail::send(&message).await,
            MailTransport::Smtp { host, port, tls } => {
                let smtp = transport(config, host, *port, *tls)?;
                smtp.send(message).await.map(drop).map_err(|error| refusal(&error))
            }
        }
    };
    let late =
        || Err(DeliveryError::temporary(format!("the mail server did not answer within {} s", DELIVERY_TIMEOUT.as_secs())));
    tokio::time::timeout(DELIVERY_TIMEOUT, sending).await.unwrap_or_else(|_| late())
}

fn transport(config: &MailConfig, host: &str, port: u16, tls: bool) -> Result<AsyncSmtpTransport<Tokio1Executor>, DeliveryError> {
    let is_loopback = config.transport.is_loopback();
    let mut parameters = TlsParameters::builder(host.to_owned());
    if is_loopback && !tls {
        // On loopback, a mail server without STARTTLS is accepted, so a certificate proves nothing.
        parameters = parameters.dangerous_accept_invalid_certs(true);
    }
    let parameters = parameters.build_rustls().map_err(DeliveryError::temporary)?;
    let tls = match (tls, is_loopback) {
        (true, _) => Tls::Wrapper(parameters),
        (false, true) => Tls::Opportunistic(parameters),
        (false, false) => Tls::Required(parameters),
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .port(port)
        .timeout(Some(COMMAND_TIMEOUT))
        .hello_name(ClientId::Domain(config.from.host().to_owned()))
        .tls(tls);
    if let (Some(user), Some(file)) = (&config.user, &config.password_file) {
        builder = builder.credentials(Credentials::new(user.clone(), password(file)?));
    }
    Ok(builder.build())
}

/// Reads the password. The file is read for each delivery, so a changed password is used without a restart.
pub(super) fn password(file: &std::path::Path) -> Result<String, DeliveryError> {
    let unusable =
        |why: &dyn fmt::Display| DeliveryError::temporary(format!("cannot use the password of the mail server: {why}"));
    let bytes = read_private(file, MAX_PASSWORD).map_err(|error| {
        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        unusable(&format!("{error}{hint}"))
    })?;
    let bytes = bytes.ok_or_else(|| unusable(&format!("{} does not exist", file.display())))?;
    let text = String::from_utf8(bytes).map_err(|_| unusable(&"the file is not UTF-8"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(unusable(&"the file is empty")),
        password => Ok(password.to_owned()),
    }
}

fn refusal(error: &lettre::transport::smtp::Error) -> DeliveryError {
    let mut why = error.to_string();
    // lettre shows the first cause only.
    let mut cause = error.source().and_then(|cause| cause.source());
    while let Some(error) = cause {
        let text = error.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        cause = error.source();
    }
    let is_login = error.status().is_some_and(|code| LOGIN_CODES.contains(&u16::from(code)));
    if error.is_permanent() && !is_login { DeliveryError::permanent(why) } else { DeliveryError::temporary(why) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::NotificationKind, notify::message::MessageState};

    fn config() -> MailConfig {
        MailConfig {
            transport: MailTransport::Sendmail,
            user: None,
            password_file: None,
            from: "larder@example.com".parse().unwrap(),
            admins: Vec::new(),
        }
    }

    /// The queue cleans texts before this module sees them, so this test covers a defect there.
    #[test]
    fn line_break_in_a_subject_becomes_no_header() {
        let record = MessageRecord {
            event: String::from("x"),
            kind: NotificationKind::Deployed,
            at: jiff::Timestamp::UNIX_EPOCH,
            project: None,
            environment: None,
            to: String::from("ops@example.com"),
            subject: String::from("v1\r\nBcc: eve@example.com\r\n\r\nbody \u{202e}"),
            message_id: String::from("<a@example.com>"),
            references: vec![String::from("<b@example.com>"), String::from("<c@example.com>")],
            queued: jiff::Timestamp::UNIX_EPOCH,
            state: MessageState::Waiting,
            attempts: 0,
            next: jiff::Timestamp::UNIX_EPOCH,
            error: None,
            ended: None,
        };
        let content = MailContent { text: String::from("one\n.\ntwo\r\n"), html: String::from("<p>one") };
        let message = compose(&config(), &record, content).unwrap();
        let bytes = String::from_utf8(message.formatted()).unwrap();
        let (headers, _) = bytes.split_once("\r\n\r\n").unwrap();
        let names: Vec<_> =
            headers.lines().filter(|line| !line.starts_with([' ', '\t'])).map(|line| line.split(':').next().unwrap()).collect();
        assert!(!names.contains(&"Bcc") && names.contains(&"Subject"), "{headers}");
        assert!(
            headers.contains("In-Reply-To: <c@example.com>") && headers.contains("References: <b@example.com> <c@example.com>"),
            "{headers}"
        );
        assert!(
            headers.contains("Auto-Submitted: auto-generated") && headers.contains("Message-ID: <a@example.com>"),
            "{headers}"
        );
        let to: Vec<_> = message.envelope().to().iter().map(ToString::to_string).collect();
        assert_eq!(to, ["ops@example.com"]);
    }

    #[test]
    fn password_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        assert!(matches!(password(&file), Err(DeliveryError::Temporary(why)) if why.contains("does not exist")));
        std::fs::write(&file, "secret\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(
            matches!(password(&file), Err(DeliveryError::Temporary(why)) if why.contains("chmod 600") && !why.contains("secret"))
        );
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(password(&file), Ok(String::from("secret")));
    }
}
