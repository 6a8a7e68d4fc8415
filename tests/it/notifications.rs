//! Mails about deployments: their texts and their recipients. `mail_servers.rs` is about the delivery.

use std::fs;

use serde_json::Value;

use crate::harness::{
    Repo, World,
    cli::Output,
    in_each_mode, in_one_mode,
    mail::{Mail, MailServer},
    until,
};

in_each_mode!(mails_say_what_changed_what_serves_and_how_to_go_back);
in_one_mode!(
    hostile_commit_title_and_output_change_no_header,
    frozen_environment_is_mailed_to_administrators,
    messages_of_a_hidden_environment_are_delivered_and_not_shown,
);

pub const SERVE: &str = "exec larder static-server --root .\n";
pub const RECIPE: &str = "health: {timeout: 10s, interval: 20ms}\ndrain: 100ms\n";

/// Failed attempts are repeated after 50 ms instead of seconds.
pub const QUICK: (&str, &str) = ("FAILPOINTS", "notify_delay=return(50)");

/// Configures the mail server of a world, and restarts larder.
pub fn configure(world: &World, smtp: &str, more: &str) {
    configure_with(world, smtp, more, &[QUICK]);
}

/// Configures the mail server of a world, and restarts larder with an environment.
pub fn configure_with(world: &World, smtp: &str, more: &str, env: &[(&str, &str)]) {
    let file = world.root().join("larder.yml");
    let mail = format!("mail:\n  smtp: {smtp}\n  from: larder@example.com\n{more}");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.split("mail:\n").next().unwrap().to_owned();
    fs::write(&file, text + &mail).unwrap();
    world.restart(env);
}

/// Returns a clone of the project `shop`, whose recipe names the recipients `notify`.
pub fn shop<'w>(world: &'w World, notify: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", SERVE);
    repo.write("larder.yml", format!("{RECIPE}notify: {notify}\n"));
    repo
}

pub fn log(world: &World) -> Vec<Value> {
    log_of(world, "shop")
}

pub fn log_of(world: &World, project: &str) -> Vec<Value> {
    world.larder(&["notify", "log", project, "--json"]).json().as_array().unwrap().clone()
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
    assert_eq!(commands.len(), 4, "{commands:#?}");
    let (larder, other): (Vec<_>, Vec<_>) = commands.iter().partition(|command| command.starts_with("larder "));
    for command in &other {
        let secret = Output::of(world.client("sh").args(["-c", command])).ok().trim().to_owned();
        let recipe = format!("notify: {{webhooks: [{{url: 'https://example.com/hook', secret: {secret}}}]}}\n");
        assert!(larder::config::Recipe::parse(recipe.as_bytes()).is_ok(), "{command}: {secret}");
    }
    // A command in a sentence is one of the commands in the blocks, possibly without the project. `larder serve` runs the test.
    let inline: Vec<_> = page.split('`').skip(1).step_by(2).filter(|code| code.starts_with("larder ")).collect();
    assert!(inline.len() >= 3, "{inline:#?}");
    for code in inline.iter().filter(|code| **code != "larder serve") {
        assert!(larder.iter().any(|command| command.starts_with(code)), "no test runs `{code}`");
    }
    for command in larder {
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

/// Makes a commit whose title and author try to become headers.
pub fn hostile_commit(repo: &Repo<'_>) {
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
}

fn hostile_commit_title_and_output_change_no_header(world: &World) {
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "");
    let repo = shop(world, "{mail: [team@example.com]}");
    repo.page("version one");
    hostile_commit(&repo);
    repo.push().accepted();
    // A build that prints 50 MB, half of it in one line, and then fails.
    let script = "#!/bin/sh\nhead -c 25000000 /dev/zero | tr '\\0' 'x'\necho\nyes a line of output | head -c 25000000\nprintf 'Subject: evil\\r\\nBcc: eve@example.com\\n.\\n<script>\\n'\nexit 1\n";
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

fn frozen_environment_is_mailed_to_administrators(world: &World) {
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "  admins: [admin@example.com]\n");
    let repo = shop(world, "{mail: [team@example.com], events: [stuck, failed]}");
    let created = server.wait_for(1).remove(0);
    created.what("operator created shop/production.").who("Created by").why("with `larder project create` or `larder init`");
    created.serves("Nothing is deployed yet").back("destroys the whole project");
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
        mail.what("operator unfroze shop/production").who("Unfrozen by").serves("v1 (commit ").serves("serves visitors");
        mail.why("The environment was frozen, because the deployment of").why("failed: deploy: ");
        mail.why("Its changes could not be reverted: deploy.slot: ").back("larder rollback shop");
        mail.says("operator ran `larder deploy shop --unfreeze`, which reverted the changes of the deployment.");
        assert_eq!(mail.header("References"), mails[0].header("Message-ID"));
    }
    assert_eq!(server.mails().len(), 5);

    // The record of a deployment is damaged, and a person repairs the record.
    let deployments = world.environment("shop").join("deployments");
    let journal = deployments.join(crate::harness::state::names(&deployments).remove(0)).join("journal.jsonl");
    let text = fs::read(&journal).unwrap();
    fs::write(&journal, [b"garbage\n", &text[..]].concat()).unwrap();
    world.restart(&[QUICK]);
    // The damaged record also holds the recipients of the project.
    let mail = server.wait_for(6).remove(5);
    assert_eq!(
        (mail.to[0].as_str(), mail.subject()),
        ("admin@example.com", "[shop/production] frozen: the record of a deployment cannot be used".to_owned())
    );
    mail.what("shop/production is frozen").says("journal.jsonl").says("larder deploy shop --unfreeze");
    // The next start sends no mail again.
    world.restart(&[QUICK]);
    fs::write(&journal, &text).unwrap();
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    let is_frozen = |mail: &Mail| mail.subject().contains("frozen: the record of a deployment");
    until("both are told", || server.mails().iter().skip(6).filter(|mail| !is_frozen(mail)).count() == 2);
    let (again, unfrozen): (Vec<_>, Vec<_>) = server.mails().split_off(6).into_iter().partition(is_frozen);
    for mail in &unfrozen {
        mail.what("operator unfroze shop/production").who("Unfrozen by").serves("v1 (commit ").back("larder rollback shop");
        mail.why("the record of a deployment could not be used").why("operator repaired or removed the record");
    }
    // If the record was repaired before that start had announced the freeze, the team, which knew nothing yet, is told once.
    let again: Vec<_> = again.iter().map(|mail| mail.to[0].as_str()).collect();
    assert!(again.is_empty() || again == ["team@example.com"], "{again:?}");
    let so_far = 8 + again.len();
    assert_eq!(server.mails().len(), so_far);

    // The record of a restore is damaged, and its removal is enough.
    world.stop();
    let record = world.environment("shop").join("restore.json");
    fs::write(&record, "{\"version\":9,\"end\":null}").unwrap();
    world.start(&[QUICK]);
    for mail in &server.wait_for(so_far + 2)[so_far..] {
        mail.what("shop/production is frozen").says("its version is 9");
    }
}

/// A user with a right on one environment only sees the messages about this environment, also in the answer of a command that delivers all
/// messages of the project.
fn messages_of_a_hidden_environment_are_delivered_and_not_shown(world: &World) {
    let mut server = MailServer::start();
    // A failed attempt is not repeated by itself during the test.
    let patient = ("FAILPOINTS", "notify_delay=return(3600000)");
    configure_with(world, &format!("smtp://127.0.0.1:{}", server.port), "", &[patient]);
    let repo = shop(world, "{mail: [team@example.com, boss@example.com]}");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    world.larder(&["user", "grant", "bob", "shop/staging", "none"]).ok();
    server.down();
    repo.page("version one");
    repo.push().accepted();
    repo.push_as(&["HEAD:refs/heads/next"]).accepted();
    let of = |rows: &Value| -> Vec<String> {
        rows.as_array().unwrap().iter().map(|row| row["environment"].as_str().unwrap().to_owned()).collect()
    };
    crate::harness::until("all messages wait", || log(world).len() == 4);
    let production = ["shop/production", "shop/production"];
    assert_eq!(of(&world.ssh("bob", &["notify", "log", "shop", "--json"]).json()), production);
    world.ssh("bob", &["notify", "log", "shop"]).exits(0).keeps_quiet_about("staging");
    world.ssh("bob", &["notify", "log", "shop/staging"]).exits(4);
    let failed = world.ssh("bob", &["notify", "retry", "shop"]);
    failed.exits(1).says("team@example.com: waiting after").keeps_quiet_about("staging");
    server.up();
    let retried = world.ssh("bob", &["notify", "retry", "shop", "--json"]);
    assert_eq!(of(&retried.exits(0).any_json()["messages"]), production, "{retried}");
    assert_eq!(server.wait_for(4).len(), 4, "the messages of the hidden environment are delivered, too");
    crate::harness::until("all deliveries are recorded", || log(world).iter().all(|row| row["state"] == "delivered"));
}
