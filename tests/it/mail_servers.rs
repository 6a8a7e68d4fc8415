//! The delivery of mails: mail servers that work, hang, refuse mails, are absent or have a wrong certificate, and the program sendmail. Each mail
//! arrives once and in order.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    harness::{
        Repo, World,
        cli::Output,
        databases::give_to_larder,
        in_one_mode, installed,
        mail::{Answers, Mail, MailServer, Mailbox},
        until,
    },
    notifications::{QUICK, RECIPE, SERVE, configure, configure_with, hostile_commit, log, log_of, shop},
};

in_one_mode!(
    each_mail_arrives_once_and_in_order_whatever_the_mail_server_does,
    mails_arrive_once_and_in_order_although_servers_are_killed_and_absent,
    refused_mail_is_repeated_and_bounced_mail_is_not,
    mail_server_that_hangs_slows_no_deployment,
    mail_server_without_tls_or_with_wrong_certificate_gets_nothing,
    sendmail_gets_no_text_of_a_project_as_an_argument,
    sendmail_of_debian_delivers,
);

/// The attempts of an hour without an answer: the waits of 5, 10, 20, 40, 80, 160, 320 and 600 seconds sum up to 1,235 seconds, and four
/// further waits of 600 seconds follow. `delay_doubles_up_to_its_maximum` checks these waits; here, a failpoint makes them short.
const ATTEMPTS_OF_AN_HOUR: u64 = 12;

/// Two projects have two recipients each. The mail server works, hangs, refuses each mail for now, and is down while larder is killed five times.
fn each_mail_arrives_once_and_in_order_whatever_the_mail_server_does(world: &World) {
    const RECIPIENTS: [&str; 2] = ["team@example.com", "boss@example.com"];
    let mut mailbox = Mailbox::start(world);
    configure(world, &format!("smtp://localhost:{}", mailbox.port()), "");
    let repos = ["shop", "blog"].map(|project| {
        let repo = Repo::new(world, world_project(world, project));
        repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", SERVE);
        repo.write("larder.yml", format!("{RECIPE}notify: {{mail: [{}]}}\n", RECIPIENTS.join(", ")));
        (project, repo)
    });
    let mut expected: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut deploy = |at: usize, page: &str| {
        let (project, repo) = &repos[at];
        repo.page(page);
        repo.push().accepted();
        let pages = expected.entry(*project).or_default();
        pages.push(format!("[{project}/production] v{} is live: {page}", pages.len() + 1));
    };
    let waiting =
        |project: &str| log_of(world, project).into_iter().filter(|message| message["state"] == "waiting").collect::<Vec<_>>();

    (0..2).for_each(|at| deploy(at, "the mail server works"));
    RECIPIENTS.iter().for_each(|to| drop(mailbox.wait_for(to, 2)));

    mailbox.hang();
    (0..2).for_each(|at| deploy(at, "the mail server hangs"));
    until("the mails wait", || waiting("shop").len() == 2 && waiting("blog").len() == 2);
    mailbox.recover();
    RECIPIENTS.iter().for_each(|to| drop(mailbox.wait_for(to, 4)));

    until("the deliveries are recorded", || waiting("shop").is_empty() && waiting("blog").is_empty());
    mailbox.greylist();
    (0..2).for_each(|at| deploy(at, "the mail server asks to come back later"));
    until("each mail was refused twice", || {
        let all = [waiting("shop"), waiting("blog")].concat();
        all.len() == 4 && all.iter().all(|message| message["attempts"].as_u64() >= Some(2))
    });
    assert!(waiting("shop")[0]["error"].as_str().unwrap().contains("45"), "{:#?}", waiting("shop"));
    mailbox.recover();
    RECIPIENTS.iter().for_each(|to| drop(mailbox.wait_for(to, 6)));
    until("the deliveries are recorded", || waiting("shop").is_empty() && waiting("blog").is_empty());

    mailbox.down();
    for kill in 0..5 {
        deploy(kill % 2, &format!("the mail server is down, and larder is killed for the {}. time", kill + 1));
        if kill % 2 == 0 {
            world.kill9_server();
        } else {
            world.kill9_all();
            world.start(&[QUICK]);
        }
    }
    until("larder has made the attempts of an hour", || {
        [waiting("shop"), waiting("blog")].iter().all(|waiting| {
            let attempts =
                |to: &str| waiting.iter().find(|message| message["to"] == to).and_then(|message| message["attempts"].as_u64());
            RECIPIENTS.iter().all(|to| attempts(to) >= Some(ATTEMPTS_OF_AN_HOUR))
        })
    });
    mailbox.up();
    let all: usize = expected.values().map(Vec::len).sum();
    for recipient in RECIPIENTS {
        mailbox.wait_for(recipient, all);
    }
    until("the deliveries are recorded", || waiting("shop").is_empty() && waiting("blog").is_empty());
    for recipient in RECIPIENTS {
        let mails = mailbox.mails_to(recipient);
        for (project, expected) in &expected {
            let subjects: Vec<_> = mails.iter().map(Mail::subject).filter(|subject| subject.contains(project)).collect();
            assert_eq!(&subjects, expected, "the mails to {recipient}");
        }
        assert_eq!(mails.len(), all, "the mails to {recipient}");
    }
}

fn world_project<'a>(world: &World, name: &'a str) -> &'a str {
    world.project(name);
    name
}

fn mails_arrive_once_and_in_order_although_servers_are_killed_and_absent(world: &World) {
    let mut server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "");
    let repo = shop(world, "{mail: [team@example.com]}");
    server.down();
    let rounds = if std::env::var_os("LARDER_TEST_THOROUGH").is_some() { 20 } else { 3 };
    for round in 0..rounds {
        repo.page(&format!("page {round}"));
        repo.push().accepted();
        if round % 2 == 0 {
            world.kill9_server()
        } else {
            world.kill9_all()
        }
        if round % 2 == 1 {
            world.start(&[QUICK]);
        }
    }
    until("all mails are queued", || log(world).len() == rounds);
    assert!(log(world).iter().all(|message| message["state"] == "waiting"));
    world.larder(&["notify", "retry", "shop"]).exits(1).says("waiting after");
    server.up();
    server.wait_for(rounds);
    until("all mails are recorded", || log(world).iter().all(|message| message["state"] == "delivered"));
    world.kill9_server();
    // Further work of the new server follows its repeated announcements.
    repo.page("the last page");
    repo.push().accepted();
    let mails = server.wait_for(rounds + 1);
    until("the last mail is recorded", || log(world).iter().all(|message| message["state"] == "delivered"));
    let mut ids: Vec<_> = mails.iter().map(|mail| mail.header("Message-ID").unwrap()).collect();
    let subjects: Vec<_> = mails.iter().map(Mail::subject).collect();
    // A kill between the server's answer and the record repeats a mail with the same id.
    ids.dedup();
    assert_eq!(ids.len(), rounds + 1, "{subjects:#?}");
    let mut expected: Vec<_> =
        (0..rounds).map(|round| format!("[shop/production] v{} is live: page {round}", round + 1)).collect();
    expected.push(format!("[shop/production] v{} is live: the last page", rounds + 1));
    let mut seen = subjects.clone();
    seen.dedup();
    assert_eq!(seen, expected);
}

fn refused_mail_is_repeated_and_bounced_mail_is_not(world: &World) {
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "");
    let repo = shop(world, "{mail: [gone@example.com, team@example.com], events: [deployed]}");
    server.answer(Answers::WantsLogin);
    repo.page("version one");
    repo.push().accepted();
    until("both mails are refused", || {
        let log = log(world);
        log.len() == 2 && log.iter().all(|message| message["attempts"].as_u64() >= Some(1))
    });
    // A wrong login concerns all mails, so no mail is given up.
    assert!(log(world).iter().all(|message| message["state"] == "waiting"), "{:?}", log(world));
    server.answer(Answers::Busy);
    until("both mails are refused for now, twice", || {
        let log = log(world);
        let greylisted =
            |message: &serde_json::Value| message["error"].as_str().is_some_and(|error| error.contains("greylisted"));
        log.len() == 2 && log.iter().all(|message| message["attempts"].as_u64() >= Some(2) && greylisted(message))
    });
    assert!(log(world)[0]["error"].as_str().unwrap().contains("greylisted"), "{:?}", log(world));
    server.answer(Answers::Bounces);
    server.wait_for(1);
    until("both deliveries have ended", || {
        log(world).len() == 2 && log(world).iter().all(|message| message["state"] != "waiting")
    });
    let log_now = log(world);
    assert_eq!((&log_now[0]["state"], &log_now[1]["state"]), (&"failed".into(), &"delivered".into()), "{log_now:#?}");
    assert!(log_now[0]["error"].as_str().unwrap().contains("no such mailbox"), "{log_now:#?}");
    let before = server.connections();
    // An event that the recipe does not name is not mailed, and a bounced mail holds back no later mail.
    repo.write("serve.sh", "exit 7\n").commit("broken");
    repo.push().rejected();
    repo.write("serve.sh", SERVE);
    repo.page("version two");
    repo.push().accepted();
    server.wait_for(2);
    until("the last deliveries have ended", || {
        let log = log(world);
        log.len() == 4 && log.iter().all(|message| message["state"] != "waiting")
    });
    assert_eq!(server.connections() - before, 2, "a bounced mail is not attempted again");
    server.answer(Answers::Good);
    world.larder(&["notify", "retry", "shop"]).exits(0).says("gone@example.com: delivered");
    assert_eq!(server.wait_for(4).len(), 4);
}

fn mail_server_that_hangs_slows_no_deployment(world: &World) {
    let server = MailServer::start();
    server.answer(Answers::Hangs);
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "");
    let repo = shop(world, "{mail: [team@example.com]}");
    for page in ["one", "two", "three"] {
        repo.page(page);
        repo.push().accepted();
    }
    until("the mails are queued", || log(world).len() == 3);
    until("the server hangs", || server.connections() > 0);
    assert!(log(world).iter().all(|message| message["state"] == "waiting"), "{:?}", log(world));
    // A graceful stop does not wait for the mail server either.
    world.restart(&[QUICK]);
    server.answer(Answers::Good);
    let mails = server.wait_for(3);
    let subjects: Vec<_> = mails.iter().map(|mail| mail.subject().rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(subjects, ["one", "two", "three"]);
}

fn mail_server_without_tls_or_with_wrong_certificate_gets_nothing(world: &World) {
    let server = MailServer::start();
    // This address is not a loopback address, although the kernel connects to this machine.
    configure(world, &format!("smtp://0.0.0.0:{}", server.port), "");
    let repo = shop(world, "{mail: [team@example.com]}");
    repo.page("version one");
    repo.push().accepted();
    let error = || log(world).first().and_then(|message| message["error"].as_str().map(str::to_owned)).unwrap_or_default();
    until("the server is refused", || error().contains("STARTTLS"));
    assert!(server.mails().is_empty());

    if installed("openssl").is_none() {
        return;
    }
    let home = world.directory().join("home");
    let (key, certificate) = (home.join("tls.key"), home.join("tls.crt"));
    Output::of(
        world
            .client("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ])
            .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate),
    )
    .ok();
    let tunnel = Tunnel::start(world, "tls", (&key, &certificate), server.port);
    configure(world, &format!("smtps://localhost:{}", tunnel.port), "");
    world.larder(&["notify", "retry", "shop"]);
    until("the certificate is refused", || error().contains("certificate"));
    assert!(server.mails().is_empty());

    // The password is read from a file that other users cannot read.
    let trusted = certificate.display().to_string();
    let env = [QUICK, ("SSL_CERT_FILE", trusted.as_str())];
    world.restart(&env);
    server.wait_for(1);
    // A trusted certificate counts for its own name only, with TLS from the first byte on and with STARTTLS.
    let starttls = Tunnel::start(world, "starttls", (&key, &certificate), server.port);
    configure_with(world, &format!("smtps://127.0.0.1:{}", tunnel.port), "", &env);
    world.larder(&["notify", "test", "shop"]).exits(1);
    until("the name of the certificate is refused", || {
        log(world)[1]["error"].as_str().is_some_and(|why| why.contains("certificate"))
    });
    configure_with(world, &format!("smtp://0.0.0.0:{}", starttls.port), "", &env);
    let before = log(world)[1]["attempts"].as_u64();
    until("the certificate after STARTTLS is refused", || {
        let message = log(world)[1].clone();
        message["attempts"].as_u64() > before && message["error"].as_str().is_some_and(|why| why.contains("certificate"))
    });
    assert_eq!(server.mails().len(), 1, "a server with the certificate of another name got a mail");
    configure_with(world, &format!("smtp://localhost:{}", starttls.port), "", &env);
    server.wait_for(2);
    let password = world.directory().join("mail.password");
    fs::write(&password, "geheim\n").unwrap();
    give_to_larder(world, &password);
    Command::new("chmod").arg("644").arg(&password).status().unwrap();
    configure(
        world,
        &format!("smtp://127.0.0.1:{}", server.port),
        &format!("  user: shop\n  password_file: {}\n", password.display()),
    );
    world.larder(&["notify", "test", "shop"]).exits(1).says("chmod 600");
    assert!(!fs::read_to_string(world.directory().join("server.log")).unwrap().contains("geheim"));
}

/// A process that accepts TLS connections, from the first byte on (`tls`) or after STARTTLS (`starttls`), and passes their bytes to a port.
struct Tunnel {
    port: u16,
    process: std::process::Child,
}

impl Tunnel {
    fn start(world: &World, kind: &str, (key, certificate): (&Path, &Path), to: u16) -> Tunnel {
        const PROGRAM: &str = "\
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[1])
listener = socket.create_server(('127.0.0.1', 0))
print(listener.getsockname()[1], flush=True)
def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
def serve(client):
    server = socket.create_connection(('127.0.0.1', int(sys.argv[3])))
    try:
        if sys.argv[4] == 'starttls':
            server.recv(1000)
            client.sendall(b'220 mail.example.com ESMTP\\r\\n')
            client.recv(1000)
            client.sendall(b'250-mail.example.com\\r\\n250 STARTTLS\\r\\n')
            client.recv(1000)
            client.sendall(b'220 go ahead\\r\\n')
        client = context.wrap_socket(client, server_side=True)
    except OSError:
        return server.close()
    threading.Thread(target=copy, args=(client, server), daemon=True).start()
    copy(server, client)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";
        let mut command = world.client("python3");
        command.args(["-c", PROGRAM]).arg(key).arg(certificate).arg(to.to_string()).arg(kind);
        let mut process = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.take().unwrap()), &mut line).unwrap();
        Tunnel { port: line.trim().parse().unwrap(), process }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Installs a program that stores its arguments, its variables and its input below a directory, and then runs the shell commands `then`. Returns
/// the directory.
fn install_sendmail(world: &World, then: &str) -> PathBuf {
    let directory = world.directory().join("sendmail");
    if !directory.exists() {
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let shown = directory.display();
    let script = format!(
        "#!/bin/sh\ncall=$(mktemp -d {shown}/call.XXXXXX)\nprintf '%s\\n' \"$@\" > $call/arguments\nenv > $call/variables\ncat > $call/input\n\
         chmod -R a+rX $call\nmv $call {shown}/done.$(date +%s.%N)\n{then}\n"
    );
    // The program is replaced by a rename, because a process that is being started may have the file open.
    let (new, program) = (directory.join("new"), directory.join("program"));
    fs::write(&new, script).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, program).unwrap();
    directory
}

/// Returns the directories of the calls that have ended, oldest first.
fn calls(directory: &Path) -> Vec<PathBuf> {
    let names = crate::harness::state::names(directory);
    names.into_iter().filter(|name| name.starts_with("done.")).map(|name| directory.join(name)).collect()
}

fn sendmail_gets_no_text_of_a_project_as_an_argument(world: &World) {
    let directory = install_sendmail(world, "exit 0");
    let points = format!("notify_delay=return(50);sendmail=return({}/program)", directory.display());
    configure_with(world, "sendmail", "", &[("FAILPOINTS", &points), ("AWS_SECRET_ACCESS_KEY", "geheim")]);
    let repo = shop(world, "{mail: [team@example.com]}");
    repo.page("version one");
    hostile_commit(&repo);
    repo.push().accepted();
    until("the program was called", || calls(&directory).len() == 1);
    let call = calls(&directory).remove(0);
    let read = |name: &str| fs::read_to_string(call.join(name)).unwrap();
    assert_eq!(read("arguments"), "-i\n-f\nlarder@example.com\n--\nteam@example.com\n");
    let variables = read("variables");
    let names: Vec<_> = variables.lines().map(|line| line.split('=').next().unwrap()).collect();
    // The shell adds the others.
    assert!(names.iter().all(|name| ["PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)), "{variables}");
    let input = read("input");
    assert!(!input.contains('\r'), "{input:?}");
    let mail = Mail { from: String::new(), to: Vec::new(), source: input.replace('\n', "\r\n") };
    assert!(mail.header("Bcc").is_none() && mail.header("To").as_deref() == Some("team@example.com"), "{input}");
    assert!(mail.subject().contains("{{ 7*7 }}"), "{}", mail.subject());
    mail.says("v1 serves visitors now.");

    // A program that fails for now gets the mail again; a program that knows no such recipient does not.
    install_sendmail(world, "if [ -e ${0%/*}/busy ]; then echo the mail queue is full >&2; exit 75; fi");
    fs::write(directory.join("busy"), "").unwrap();
    repo.page("version two");
    repo.push().accepted();
    until("the program was called three times", || calls(&directory).len() >= 3);
    until("the failure is recorded", || {
        log(world)[1]["error"].as_str().is_some_and(|why| why.contains("the mail queue is full"))
    });
    assert_eq!(log(world)[1]["state"], "waiting");
    fs::remove_file(directory.join("busy")).unwrap();
    until("the mail is delivered", || log(world)[1]["state"] == "delivered");
    install_sendmail(world, "echo no such user >&2; exit 67");
    world.larder(&["notify", "test", "shop"]).exits(1).says("no such user");
    assert_eq!(log(world)[2]["state"], "failed");
    install_sendmail(world, "exit 0");
    fs::remove_file(directory.join("program")).unwrap();
    world.larder(&["notify", "test", "shop"]).exits(1).says("cannot run");
}

/// Debian's program msmtp has the options of sendmail, and needs no privileges.
fn sendmail_of_debian_delivers(world: &World) {
    if installed("msmtp").is_none() {
        return;
    }
    let server = MailServer::start();
    let settings = world.directory().join("msmtp.conf");
    fs::write(&settings, format!("account default\nhost 127.0.0.1\nport {}\nauth off\ntls off\n", server.port)).unwrap();
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o644)).unwrap();
    let again = format!("exec msmtp -C {} \"$@\" < $(ls -d ${{0%/*}}/done.* | tail -n 1)/input", settings.display());
    let directory = install_sendmail(world, &again);
    let points = format!("notify_delay=return(50);sendmail=return({}/program)", directory.display());
    configure_with(world, "sendmail", "", &[("FAILPOINTS", &points)]);
    let repo = shop(world, "{mail: [team@example.com]}");
    repo.page("version one");
    repo.push().accepted();
    let mail = server.wait_for(1).remove(0);
    assert_eq!((mail.from.as_str(), mail.to.as_slice()), ("larder@example.com", &[String::from("team@example.com")][..]));
    assert_eq!(mail.subject(), "[shop/production] v1 is live: version one");
    mail.says("v1 serves visitors now.");
    until("the delivery is recorded", || log(world)[0]["state"] == "delivered");
}
