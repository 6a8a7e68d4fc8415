//! Mails as a test reads them, and mail servers that can be down, hang, or refuse mails: [`MailServer`] is a part of the tests, and [`Mailbox`] is
//! Debian's Postfix where Postfix can run.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;

use super::{World, postfix::Postfix, within};

/// The answers of the server from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    Good,
    /// Each mail is refused for now (4xx).
    Busy,
    /// Each mail is refused, because the client has not logged in. An operator corrects this.
    WantsLogin,
    /// Mails to recipients whose address begins with `gone` are refused for good (5xx).
    Bounces,
    /// Connections are accepted, and nothing is answered.
    Hangs,
}

/// A mail that the server has accepted.
#[derive(Debug, Clone)]
pub struct Mail {
    pub from: String,
    pub to: Vec<String>,
    /// The mail as it was sent, without dot-stuffing.
    pub source: String,
}

impl Mail {
    /// Returns a mail that a mail server has stored as a file.
    pub fn stored(text: &str) -> Mail {
        let source = text.replace("\r\n", "\n").replace('\n', "\r\n");
        let mut mail = Mail { from: String::new(), to: Vec::new(), source };
        mail.from = mail.header("Return-Path").unwrap_or_default().trim_matches(['<', '>']).to_owned();
        mail.to.extend(mail.header("Delivered-To"));
        mail
    }

    /// Returns the value of a header, unfolded. Panics if the mail has the header twice.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<String> {
        let (headers, _) = self.source.split_once("\r\n\r\n").unwrap();
        let unfolded = headers.replace("\r\n ", " ").replace("\r\n\t", " ");
        let mut found =
            unfolded.lines().filter_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        let value = found.next().map(|(_, value)| value.to_owned());
        assert!(found.next().is_none(), "{name} is there twice: {headers}");
        value
    }

    /// Returns the subject, decoded.
    #[track_caller]
    pub fn subject(&self) -> String {
        words(&self.header("Subject").unwrap())
    }

    /// Returns the decoded part of the content type `kind`: `text/plain` or `text/html`.
    #[track_caller]
    pub fn part(&self, kind: &str) -> String {
        let boundary = self.header("Content-Type").unwrap();
        let boundary = boundary.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let part = self.source.split(&format!("--{boundary}")).find(|part| part.contains(&format!("Content-Type: {kind}")));
        let part = part.unwrap_or_else(|| panic!("no part {kind}: {}", self.source));
        let (headers, body) = part.trim_start().split_once("\r\n\r\n").unwrap();
        let headers = headers.to_ascii_lowercase();
        let bytes = if headers.contains("quoted-printable") {
            quoted_printable(body)
        } else if headers.contains("base64") {
            let joined: String = body.split_whitespace().collect();
            data_encoding::BASE64.decode(joined.as_bytes()).unwrap()
        } else {
            body.as_bytes().to_vec()
        };
        String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
    }

    /// Asserts that the plain text contains `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Mail {
        let plain = self.part("text/plain");
        assert!(plain.contains(text), "{text:?} is not in the mail {}:\n{plain}", self.subject());
        self
    }
}

/// The five questions of a reader who knows nothing about larder. Each function asserts that the plain text and the HTML contain the answer.
impl Mail {
    /// The mail says what happened.
    #[track_caller]
    pub fn what(&self, answer: &str) -> &Mail {
        self.answers("what happened", answer)
    }

    /// The mail says who caused the event.
    #[track_caller]
    pub fn who(&self, answer: &str) -> &Mail {
        self.answers("who caused it", answer)
    }

    /// The mail gives the reason.
    #[track_caller]
    pub fn why(&self, answer: &str) -> &Mail {
        self.answers("why", answer)
    }

    /// The mail says what serves visitors now.
    #[track_caller]
    pub fn serves(&self, answer: &str) -> &Mail {
        self.answers("what serves now", answer)
    }

    /// The mail shows the way back.
    #[track_caller]
    pub fn back(&self, answer: &str) -> &Mail {
        self.answers("what is the way back", answer)
    }

    #[track_caller]
    fn answers(&self, question: &str, answer: &str) -> &Mail {
        for kind in ["text/plain", "text/html"] {
            let part = self.part(kind);
            let part = if kind == "text/html" { unescaped(&part) } else { part };
            assert!(part.contains(answer), "{question}? {answer:?} is not in the {kind} of {}:\n{part}", self.subject());
        }
        self
    }
}

/// Returns the text of HTML that the templates write: without tags and character references.
fn unescaped(html: &str) -> String {
    let mut text: String = html
        .split('<')
        .enumerate()
        .map(|(at, part)| if at == 0 { part } else { part.split_once('>').map_or("", |(_, text)| text) })
        .collect();
    for (reference, character) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&#x2f;", "/"), ("&amp;", "&")]
    {
        text = text.replace(reference, character);
    }
    text
}

/// Writes each mail as `NUMBER-SUBJECT.eml`, `.txt` and `.html` below the directory that `LARDER_TEST_MAILS` names, for a person.
pub fn save(mails: &[Mail]) {
    let directory = std::env::var_os("LARDER_TEST_MAILS").filter(|_| !std::thread::panicking());
    let Some(directory) = directory else { return };
    let test = std::thread::current().name().unwrap_or("test").replace("::", ".");
    let directory = std::path::Path::new(&directory).join(test);
    fs::create_dir_all(&directory).unwrap();
    for (number, mail) in mails.iter().enumerate() {
        let words: String = mail.subject().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
        let file = |ending: &str| directory.join(format!("{:02}-{}.{ending}", number + 1, words.trim_matches('-')));
        fs::write(file("eml"), &mail.source).unwrap();
        fs::write(file("txt"), format!("To: {}\nSubject: {}\n\n{}", mail.to.join(", "), mail.subject(), mail.part("text/plain")))
            .unwrap();
        fs::write(file("html"), mail.part("text/html")).unwrap();
    }
}

/// Debian's Postfix, or the mail server of the tests where Postfix cannot run.
pub enum Mailbox {
    Postfix(Box<Postfix>),
    Own(MailServer),
}

impl Mailbox {
    /// Starts a server. Without Postfix, prints `SKIPPED:` and starts the mail server of the tests.
    pub fn start(world: &World) -> Mailbox {
        match Postfix::start(world) {
            Some(postfix) => Mailbox::Postfix(Box::new(postfix)),
            None => Mailbox::Own(MailServer::start()),
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Mailbox::Postfix(postfix) => postfix.port,
            Mailbox::Own(server) => server.port,
        }
    }

    /// From now on, connections are accepted and nothing is answered, until [`Mailbox::recover`].
    pub fn hang(&self) {
        match self {
            Mailbox::Postfix(postfix) => postfix.hang(),
            Mailbox::Own(server) => server.answer(Answers::Hangs),
        }
    }

    /// From now on, each mail is refused for now (4xx), until [`Mailbox::recover`]. No mail may be on its way.
    pub fn greylist(&mut self) {
        match self {
            Mailbox::Postfix(postfix) => postfix.defer(true),
            Mailbox::Own(server) => server.answer(Answers::Busy),
        }
    }

    /// From now on, each mail is accepted.
    pub fn recover(&mut self) {
        match self {
            Mailbox::Postfix(postfix) => {
                postfix.go_on();
                postfix.defer(false);
            }
            Mailbox::Own(server) => server.answer(Answers::Good),
        }
    }

    /// Ends the server. Connections are refused until [`Mailbox::up`].
    pub fn down(&mut self) {
        match self {
            Mailbox::Postfix(postfix) => postfix.down(),
            Mailbox::Own(server) => server.down(),
        }
    }

    /// Starts the server again on the same port.
    pub fn up(&mut self) {
        match self {
            Mailbox::Postfix(postfix) => postfix.up(),
            Mailbox::Own(server) => server.up(),
        }
    }

    /// Returns the mails so far, in the order in which the server accepted them.
    pub fn mails(&self) -> Vec<Mail> {
        match self {
            Mailbox::Postfix(postfix) => postfix.mails(),
            Mailbox::Own(server) => server.mails(),
        }
    }

    /// Returns the mails to a recipient.
    pub fn mails_to(&self, recipient: &str) -> Vec<Mail> {
        self.mails().into_iter().filter(|mail| mail.to == [recipient]).collect()
    }

    /// Waits until `count` mails to a recipient have arrived, and returns them.
    #[track_caller]
    pub fn wait_for(&self, recipient: &str, count: usize) -> Vec<Mail> {
        let come = within(Duration::from_secs(60), || self.mails_to(recipient).len() >= count);
        let mails = self.mails_to(recipient);
        let subjects: Vec<_> = mails.iter().map(Mail::subject).collect();
        assert!(come, "{} mails to {recipient} have arrived (expected {count}): {subjects:#?}", mails.len());
        mails
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if let Mailbox::Postfix(postfix) = self {
            save(&postfix.mails());
        }
    }
}

/// Decodes the encoded words of a header (RFC 2047).
fn words(text: &str) -> String {
    let mut decoded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("=?utf-8?b?") {
        let (word, after) = after.split_once("?=").unwrap();
        if !before.trim().is_empty() {
            decoded.push_str(before);
        }
        decoded.push_str(&String::from_utf8(data_encoding::BASE64.decode(word.as_bytes()).unwrap()).unwrap());
        rest = after;
    }
    decoded + rest
}

fn quoted_printable(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.replace("=\r\n", "").into_bytes().into_iter();
    while let Some(byte) = rest.next() {
        if byte == b'=' {
            let digits: Vec<u8> = rest.by_ref().take(2).collect();
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    bytes
}

#[derive(Debug)]
struct State {
    answers: Answers,
    mails: Vec<Mail>,
    /// The number of connections since the start.
    connections: usize,
    /// False to end the thread.
    is_up: bool,
    open: Vec<TcpStream>,
}

/// A mail server on a free port of loopback. Dropping the value ends the server.
pub struct MailServer {
    pub port: u16,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl MailServer {
    pub fn start() -> MailServer {
        let state = State { answers: Answers::Good, mails: Vec::new(), connections: 0, is_up: false, open: Vec::new() };
        let mut server = MailServer { port: 0, state: Arc::new(Mutex::new(state)), thread: None };
        server.up();
        server
    }

    /// Starts the server again on the same port.
    pub fn up(&mut self) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        self.port = listener.local_addr().unwrap().port();
        self.state.lock().is_up = true;
        let state = self.state.clone();
        self.thread = Some(std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut shared = state.lock();
                if !shared.is_up {
                    return;
                }
                shared.connections += 1;
                shared.open.push(client.try_clone().unwrap());
                drop(shared);
                let state = state.clone();
                std::thread::spawn(move || serve(client, &state));
            }
        }));
    }

    /// Ends the server. Connections are refused until [`MailServer::up`].
    pub fn down(&mut self) {
        self.state.lock().is_up = false;
        let _ = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)), Duration::from_secs(5));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for client in self.state.lock().open.drain(..) {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn answer(&self, answers: Answers) {
        let mut state = self.state.lock();
        state.answers = answers;
        // A connection that hangs ends.
        for client in state.open.drain(..) {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Returns the mails so far, in the order of their arrival.
    pub fn mails(&self) -> Vec<Mail> {
        self.state.lock().mails.clone()
    }

    /// Waits until `count` mails have arrived, and returns all mails.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Mail> {
        let come = within(Duration::from_secs(60), || self.state.lock().mails.len() >= count);
        let mails = self.mails();
        let subjects: Vec<_> = mails.iter().map(Mail::subject).collect();
        assert!(come, "{} mails have arrived (expected {count}): {subjects:#?}", mails.len());
        mails
    }

    pub fn connections(&self) -> usize {
        self.state.lock().connections
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.down();
        save(&self.mails());
    }
}

/// Serves one connection, as RFC 5321 describes it.
fn serve(client: TcpStream, state: &Mutex<State>) -> Option<()> {
    let answers = state.lock().answers;
    client.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let mut writer = client.try_clone().ok()?;
    let mut lines = BufReader::new(client).lines();
    let mut say = |text: &str| writer.write_all(format!("{text}\r\n").as_bytes()).ok();
    if answers == Answers::Hangs {
        // The client ends the connection, or the test does.
        while lines.next()?.is_ok() {}
        return None;
    }
    say("220 mail.example.com ESMTP")?;
    let (mut from, mut to) = (String::new(), Vec::new());
    loop {
        let line = lines.next()?.ok()?;
        let (verb, rest) = line.split_at(line.len().min(4));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => {
                say("250-mail.example.com")?;
                say("250 8BITMIME")?;
            }
            "MAIL" if answers == Answers::Busy => say("451 4.7.1 greylisted, come back later")?,
            "MAIL" if answers == Answers::WantsLogin => say("530 5.7.0 authentication required")?,
            "MAIL" => {
                from = between(rest);
                say("250 ok")?;
            }
            "RCPT" if answers == Answers::Bounces && between(rest).starts_with("gone") => say("550 5.1.1 no such mailbox")?,
            "RCPT" => {
                to.push(between(rest));
                say("250 ok")?;
            }
            "DATA" => {
                say("354 go on")?;
                let mut source = String::new();
                loop {
                    let line = lines.next()?.ok()?;
                    if line == "." {
                        break;
                    }
                    source.push_str(line.strip_prefix('.').unwrap_or(&line));
                    source.push_str("\r\n");
                }
                state.lock().mails.push(Mail { from: std::mem::take(&mut from), to: std::mem::take(&mut to), source });
                say("250 accepted")?;
            }
            "RSET" | "NOOP" => say("250 ok")?,
            "QUIT" => {
                say("221 bye")?;
                return Some(());
            }
            _ => say("502 not implemented")?,
        }
    }
}

fn between(text: &str) -> String {
    text.split('<').nth(1).and_then(|rest| rest.split('>').next()).unwrap_or_default().to_owned()
}
