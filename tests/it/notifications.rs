//! Mails about deployments: their texts, their order, and their delivery by mail servers that fail.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::Value;

use crate::harness::{
    Repo, World,
    cli::Output,
    databases::give_to_larder,
    in_each_mode, in_one_mode, installed,
    mail::{Answers, Mail, MailServer},
    postfix::Postfix,
    until,
};

in_each_mode!(mails_say_what_changed_what_serves_and_how_to_go_back);
in_one_mode!(
    mails_arrive_once_and_in_order_although_servers_are_killed_and_absent,
    refused_mail_is_repeated_and_bounced_mail_is_not,
    mail_server_that_hangs_slows_no_deployment,
    real_mail_server_gets_each_mail_once,
    hostile_commit_title_and_output_change_no_header,
    mail_server_without_tls_or_with_wrong_certificate_gets_nothing,
    frozen_environment_is_mailed_to_administrators,
    verdict_in_mail_is_verdict_in_journal
);

const SERVE: &str = "exec larder static-server --root .\n";
const RECIPE: &str = "health: {timeout: 10s, interval: 20ms}\ndrain: 100ms\n";

/// Failed attempts are repeated after 50 ms instead of seconds.
const QUICK: (&str, &str) = ("FAILPOINTS", "notify_delay=return(50)");

/// Configures the mail server of a world, and restarts larder.
fn configure(world: &World, smtp: &str, more: &str) {
    let file = world.root().join("larder.yml");
    let mail = format!("mail:\n  smtp: {smtp}\n  from: larder@example.com\n{more}");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.split("mail:\n").next().unwrap().to_owned();
    fs::write(&file, text + &mail).unwrap();
    world.restart(&[QUICK]);
}

/// Returns a clone of the project `shop`, whose recipe names the recipients `notify`.
fn shop<'w>(world: &'w World, notify: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", SERVE);
    repo.write("larder.yml", format!("{RECIPE}notify: {notify}\n"));
    repo
}

fn log(world: &World) -> Vec<Value> {
    world.larder(&["notify", "log", "shop", "--json"]).json().as_array().unwrap().clone()
}

fn mails_say_what_changed_what_serves_and_how_to_go_back(world: &World) {
    let server = MailServer::start();
    world.larder(&["project", "create", "other", "--mode", "cooking"]).ok();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "");
    world.larder(&["notify", "test", "other"]).exits(3).says("names no recipients");

    let repo = shop(world, "{mail: [team@example.com, boss@example.com]}");
    repo.page("the first page");
    repo.push().accepted();
    let first = server.wait_for(2);
    let to: Vec<_> = first.iter().map(|mail| mail.to.join(",")).collect();
    assert!(to.contains(&String::from("team@example.com")) && to.contains(&String::from("boss@example.com")), "{to:?}");
    let mail = &first[0];
    assert_eq!(mail.subject(), "[shop/production] v1 is live: the first page");
    mail.says("v1 serves visitors now.").says("alice (push to main)").says("the first page (Alice)");
    assert_eq!(mail.header("Auto-Submitted").as_deref(), Some("auto-generated"));
    assert!(mail.part("text/html").contains("<!doctype html>"));
    assert_eq!(mail.header("Message-ID"), first[1].header("Message-ID"), "the id depends on the event only");

    repo.write("serve.sh", "echo cannot open the database >&2\nexit 7\n");
    let broken = repo.commit("open the database");
    let reason = repo.push().rejected();
    let failed = server.wait_for(4)[2].clone();
    assert!(
        failed.subject().starts_with(&format!("[shop/production] deployment of {} failed: deploy: ", &broken[..10])),
        "{failed:?}"
    );
    failed.says("v1 (commit ").says("still serves visitors. Nothing has to be undone.").says("web.1 cannot open the database");
    failed.says("Changes in this deployment").says("open the database (Alice)").says("larder deploy shop --retry");
    // The sentence of the verdict is the sentence of the mail.
    let sentence = reason.split_once(": ").unwrap().1.split("; v1 still live").next().unwrap().to_owned();
    failed.says(&sentence);
    assert_eq!(failed.header("References"), None);

    repo.write("serve.sh", SERVE);
    repo.page("the second page");
    repo.push().accepted();
    let second = server.wait_for(6)[4].clone();
    let id = failed.header("Message-ID");
    assert_eq!(
        (second.header("References"), second.header("In-Reply-To")),
        (id.clone(), id),
        "the recovery is in the failure's thread"
    );
    second.says("Changes since the release that was live").says("the second page (Alice)").says("open the database (Alice)");
    second.says("larder rollback shop v1").says("Address: http://shop.localhost:");

    world.larder(&["rollback", "shop"]).ok();
    let back = server.wait_for(8)[6].clone();
    assert!(back.subject().starts_with("[shop/production] v3 is live: rollback to v1, "), "{}", back.subject());
    back.says("rolled shop/production back").says("These commits are taken back").says("the second page (Alice)");
    assert_eq!(back.header("References"), None);

    follow_the_page(world);
    world.ssh("alice", &["notify", "test", "shop"]).exits(0).says("team@example.com: delivered");
    server.wait_for(12)[10].says("requested this test message for shop/production");
    let log = log(world);
    let states: Vec<_> = log.iter().map(|message| message["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, vec!["delivered"; 12], "{log:#?}");
    world.larder(&["notify", "log", "shop"]).says("rolled_back").says("boss@example.com");
    world.larder(&["notify", "retry", "shop"]).exits(0).says("no message of shop waits, and none failed");
    world.larder(&["notify", "retry", "shop/production"]).exits(2);
    let private = world.root().join("state/notify");
    let modes: Vec<_> = fs::read_dir(private).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert!(modes.iter().all(|text| !text.contains("\"content\"")), "the content of delivered messages is removed");
    world.is_consistent("shop");
}

/// Runs the commands of docs/notifications.md, and checks its configuration files.
fn follow_the_page(world: &World) {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/notifications.md")).unwrap();
    let blocks = |kind: &str| -> Vec<String> {
        let fence = format!("```{kind}\n");
        page.split(&fence).skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
    };
    let commands: Vec<_> = blocks("sh").iter().flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    assert_eq!(commands.len(), 3, "{commands:#?}");
    for command in commands {
        let words: Vec<_> = command.strip_prefix("larder ").unwrap().split(' ').collect();
        world.larder(&words).exits(0);
    }
    let files = blocks("yaml");
    assert!(files.len() >= 2, "{files:#?}");
    for file in files {
        let problems = if file.starts_with("notify:") {
            larder::config::Recipe::parse(file.as_bytes()).err()
        } else {
            larder::config::ServerConfig::parse("", file.as_bytes()).err()
        };
        assert!(problems.is_none(), "{problems:#?}\n{file}");
    }
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
    server.answer(Answers::Busy);
    repo.page("version one");
    repo.push().accepted();
    until("both mails are refused twice", || {
        let log = log(world);
        log.len() == 2 && log.iter().all(|message| message["attempts"].as_u64() >= Some(2))
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

fn real_mail_server_gets_each_mail_once(world: &World) {
    let Some(postfix) = Postfix::start(world) else { return };
    configure(world, &format!("smtp://localhost:{}", postfix.port), "");
    let repo = shop(world, "{mail: [team@example.com, boss@example.com]}");
    repo.page("version one");
    repo.push().accepted();
    repo.write("serve.sh", "exit 7\n").commit("broken");
    repo.push().rejected();
    world.larder(&["notify", "test", "shop"]).exits(0);
    until("the mails are in the mailbox", || postfix.mails().len() >= 6);
    let mut seen = BTreeMap::new();
    for mail in postfix.mails() {
        let line = |name: &str| mail.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        assert!(mail.contains("Return-Path: <larder@example.com>"), "{mail}");
        *seen.entry((line("Message-ID: "), line("Delivered-To: "))).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 6, "{seen:#?}");
    assert!(seen.values().all(|count| *count == 1), "{seen:#?}\n{}", postfix.log());
}

fn hostile_commit_title_and_output_change_no_header(world: &World) {
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "");
    let repo = shop(world, "{mail: [team@example.com]}");
    repo.page("version one");
    let title = "x\rBcc: eve@example.com\u{202e}\u{1b}[31m <img src=x onerror=alert(1)> {{ 7*7 }} \u{fc}";
    repo.git(&[
        "-c",
        "user.name=Eve\r\nBcc: eve@example.com <b>",
        "commit",
        "--quiet",
        "--allow-empty",
        "--cleanup=verbatim",
        "-m",
        title,
    ])
    .ok();
    repo.push().accepted();
    // A build that prints lines without an end, and then fails.
    let script = "#!/bin/sh\nhead -c 6000000 /dev/zero | tr '\\0' 'x'\necho\nprintf 'Subject: evil\\r\\nBcc: eve@example.com\\n.\\n<script>\\n'\nexit 1\n";
    repo.program(".larder/build", script).commit("much output");
    repo.push().rejected();
    let mails = server.wait_for(2);
    for mail in &mails {
        assert_eq!((mail.from.as_str(), mail.to.clone()), ("larder@example.com", vec![String::from("team@example.com")]));
        assert!(mail.header("Bcc").is_none() && mail.header("To").as_deref() == Some("team@example.com"), "{}", mail.source);
        assert!(mail.source.len() < 100_000, "{} bytes", mail.source.len());
        let lines: Vec<_> = mail.source.lines().filter(|line| line.len() > 998).collect();
        assert!(lines.is_empty(), "{lines:?}");
        for part in [mail.part("text/plain"), mail.part("text/html")] {
            assert!(!part.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{part:?}");
        }
        let html = mail.part("text/html");
        assert!(!html.contains("<img") && !html.contains("<script") && !html.contains("Eve<"), "{html}");
    }
    assert!(mails[0].subject().contains("{{ 7*7 }}") && mails[0].subject().ends_with('\u{fc}'), "{}", mails[0].subject());
    mails[1].says("| Bcc: eve@example.com").says("| <script>");
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
    let tunnel = Tunnel::start(world, &key, &certificate, server.port);
    configure(world, &format!("smtps://localhost:{}", tunnel.port), "");
    world.larder(&["notify", "retry", "shop"]);
    until("the certificate is refused", || error().contains("certificate"));
    assert!(server.mails().is_empty());

    // The password is read from a file that other users cannot read.
    let trusted = certificate.display().to_string();
    world.restart(&[QUICK, ("SSL_CERT_FILE", &trusted)]);
    server.wait_for(1);
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

/// A process that accepts TLS connections and passes their bytes to a port.
struct Tunnel {
    port: u16,
    process: std::process::Child,
}

impl Tunnel {
    fn start(world: &World, key: &std::path::Path, certificate: &std::path::Path, to: u16) -> Tunnel {
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
    try:
        client = context.wrap_socket(client, server_side=True)
    except OSError:
        return
    server = socket.create_connection(('127.0.0.1', int(sys.argv[3])))
    threading.Thread(target=copy, args=(client, server), daemon=True).start()
    copy(server, client)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";
        let mut command = world.client("python3");
        command.args(["-c", PROGRAM]).arg(key).arg(certificate).arg(to.to_string());
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

fn frozen_environment_is_mailed_to_administrators(world: &World) {
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "  admins: [admin@example.com]\n");
    let repo = shop(world, "{mail: [team@example.com], events: [stuck]}");
    server.wait_for(1)[0].says("operator created shop/production.");
    repo.page("version one");
    repo.push().accepted();
    world.restart(&[("FAILPOINTS", "notify_delay=return(50);step.deploy.boot=return;undo.deploy.slot=return")]);
    repo.page("version two");
    repo.push().rejected_with("frozen");
    let mut mails = server.wait_for(3).split_off(1);
    mails.sort_by_key(|mail| mail.to.clone());
    let to: Vec<_> = mails.iter().map(|mail| mail.to[0].as_str()).collect();
    assert_eq!(to, ["admin@example.com", "team@example.com"]);
    for mail in &mails {
        mail.says("shop/production is frozen")
            .says("v1 was live before")
            .says("larder deploy shop --unfreeze")
            .says("deploy.slot");
    }
    world.restart(&[QUICK]);
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    let mails = server.wait_for(5).split_off(1);
    for mail in &mails[2..] {
        assert_eq!(mail.subject(), "[shop/production] back to normal: unfrozen");
        mail.says("v1 (commit ").says("serves visitors");
        assert_eq!(mail.header("References"), mails[0].header("Message-ID"));
    }
    assert_eq!(server.mails().len(), 5);
}

/// Pushes with failures in random phases. The verdict of each mail is the verdict of the journal, and what serves is what the mail names.
fn verdict_in_mail_is_verdict_in_journal(world: &World) {
    const PHASES: [&str; 7] = ["pre_install", "configure", "build", "post_build", "deploy", "post_deploy", "post_install"];
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "  admins: [admin@example.com]\n");
    let repo = shop(world, "{mail: [team@example.com]}");
    let runs = if std::env::var_os("LARDER_TEST_THOROUGH").is_some() { 500 } else { 8 };
    let seed = std::env::var("LARDER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(std::process::id());
    eprintln!("LARDER_TEST_SEED={seed}");
    let mut random = seed | 1;
    let mut draw = |below: usize| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random as usize % below
    };
    for run in 0..runs {
        let phase = PHASES[draw(PHASES.len())];
        let failing = draw(3);
        let script = format!(".larder/{phase}");
        match failing {
            0 => drop(repo.program(&script, "#!/bin/sh\necho the reason >&2\nexit 3\n")),
            1 => drop(repo.write("serve.sh", "exit 7\n")),
            _ => {}
        }
        repo.page(&format!("page {run}"));
        repo.push();
        if failing == 0 {
            repo.remove(&script);
        }
        repo.write("serve.sh", SERVE);
        if draw(4) == 0 {
            world.larder(&["rollback", "shop"]);
        }
    }
    let journals = world.journals("shop");
    // The first mail is about the new environment.
    let mails = server.wait_for(journals.len() + 1).split_off(1);
    let of_mails: BTreeMap<String, String> = log(world)
        .iter()
        .filter(|message| message["kind"] != "environment_created")
        .map(|message| (message["message_id"].as_str().unwrap().to_owned(), message["kind"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!((mails.len(), of_mails.len()), (journals.len(), journals.len()));
    let mut live = None;
    let mut counts = BTreeMap::new();
    for (mail, journal) in mails.iter().zip(&journals) {
        let ended = journal.iter().find(|event| event["event"] == "ended").unwrap();
        let outcome = ended["outcome"].as_str().unwrap();
        let kind = of_mails[&mail.header("Message-ID").unwrap()].as_str();
        *counts.entry(kind.to_owned()).or_insert(0) += 1;
        match (outcome, kind) {
            ("live", "deployed" | "rolled_back") => {
                let number = ended["number"].as_u64().unwrap();
                mail.says(&format!("v{number} serves visitors now."));
                live = Some(number);
            }
            ("refused" | "rolled_back", "failed") => {
                mail.says(ended["fault"]["why"].as_str().unwrap());
                match live {
                    Some(number) => mail.says(&format!("v{number} (commit ")).says("still serves visitors"),
                    None => mail.says("Nothing is live yet"),
                };
            }
            other => panic!("the journal and the mail differ: {other:?}: {}", mail.subject()),
        }
    }
    eprintln!("verdicts: {counts:?}");
}
