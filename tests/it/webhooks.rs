//! Webhooks: signatures, formats, redelivery, and addresses to which nothing is sent.

use std::fs;

use serde_json::Value;

use crate::harness::{
    Repo, World,
    cli::Output,
    databases::give_to_larder,
    in_one_mode, installed,
    mail::MailServer,
    receiver::{Received, Receiver},
    until,
};

in_one_mode!(
    webhook_is_signed_as_standard_webhooks_describes,
    webhook_to_an_internal_address_is_never_sent,
    webhook_is_delivered_again_until_its_receiver_accepts,
    webhook_that_is_redirected_inside_reaches_nothing,
    chat_servers_get_their_own_formats,
    forges_get_the_status_of_each_deployment,
    administrators_are_mailed_about_sites_disks_and_new_environments
);

const RECIPE: &str = "health: {timeout: 10s, interval: 20ms}\ndrain: 100ms\n";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const QUICK: (&str, &str) = ("FAILPOINTS", "notify_delay=return(50)");

fn allow(world: &World, more: &str) {
    let file = world.root().join("larder.yml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}webhooks:\n  allow: [127.0.0.0/8]\n{more}")).unwrap();
    world.restart(&[QUICK]);
}

fn shop<'w>(world: &'w World, webhooks: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", format!("{RECIPE}notify:\n  webhooks:\n{webhooks}"));
    repo
}

fn log(world: &World) -> Vec<Value> {
    world.larder(&["notify", "log", "shop", "--json"]).json().as_array().unwrap().clone()
}

fn webhook_is_signed_as_standard_webhooks_describes(world: &World) {
    let receiver = Receiver::start();
    allow(world, "");
    let repo =
        shop(world, &format!("    - {{url: 'http://127.0.0.1:{}/hook', secret: [{SECRET}, {OLD_SECRET}]}}\n", receiver.port));
    repo.page("version \u{fc}ber one");
    repo.push().accepted();
    let request = receiver.wait_for(1)[0].clone();
    assert_eq!(request.line, "POST /hook HTTP/1.1");
    let body = request.json();
    assert_eq!((&body["type"], &body["data"]["environment"]), (&"deployed".into(), &"shop/production".into()), "{body:#}");
    assert_eq!(body["data"]["changes"][0]["title"], "version \u{fc}ber one");
    assert!(request.header("webhook-id").starts_with("msg_"));
    assert_eq!(request.header("webhook-signature").split(' ').count(), 2);
    assert!(!fs::read_to_string(world.directory().join("server.log")).unwrap().contains("MfKQ9r8G"));
    for secret in [SECRET, OLD_SECRET] {
        verify_with_python(world, &request, secret);
        verify_with_node(world, &request, secret);
    }
}

/// Writes the headers and the body of a request for a program in another language.
fn save(world: &World, request: &Received) -> std::path::PathBuf {
    let path = world.directory().join("home/request.json");
    let headers: serde_json::Map<String, Value> =
        request.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    fs::write(&path, serde_json::json!({ "headers": headers, "body": request.body }).to_string()).unwrap();
    path
}

fn verify_with_python(world: &World, request: &Received, secret: &str) {
    let library = world.directory().join("home/python");
    if !library.exists() {
        let mut pip = world.client("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target"]).arg(&library);
        pip.env("PIP_BREAK_SYSTEM_PACKAGES", "1").args([
            "standardwebhooks",
            "httpx",
            "attrs",
            "python-dateutil",
            "Deprecated",
            "typing-extensions",
            "six",
            "wrapt",
        ]);
        copy_registry(&mut pip);
        let installed = Output::of(&mut pip);
        if installed.status != 0 {
            let _ = fs::remove_dir_all(&library);
            eprintln!("SKIPPED: cannot install standardwebhooks from PyPI: {installed}");
            return;
        }
    }
    let program = "import json, sys\nfrom standardwebhooks.webhooks import Webhook, WebhookVerificationError\n\
        request = json.load(open(sys.argv[1]))\nWebhook(sys.argv[2]).verify(request['body'], request['headers'])\n\
        try:\n    Webhook(sys.argv[2]).verify(request['body'] + ' ', request['headers'])\nexcept WebhookVerificationError:\n    print('verified')\n";
    let mut python = world.client("python3");
    python.env("PYTHONPATH", &library).args(["-c", program]).arg(save(world, request)).arg(secret);
    Output::of(&mut python).exits(0).says("verified");
}

fn verify_with_node(world: &World, request: &Received, secret: &str) {
    if installed("node").is_none() || installed("npm").is_none() {
        return;
    }
    let library = world.directory().join("home/node");
    if !library.exists() {
        fs::create_dir(&library).unwrap();
        let mut npm = world.client("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "standardwebhooks"]).current_dir(&library);
        copy_registry(&mut npm);
        let installed = Output::of(&mut npm);
        if installed.status != 0 {
            let _ = fs::remove_dir_all(&library);
            eprintln!("SKIPPED: cannot install standardwebhooks from npm: {installed}");
            return;
        }
    }
    let program = "const { Webhook } = require('standardwebhooks');\nconst request = JSON.parse(require('fs').readFileSync(process.argv[1]));\n\
        new Webhook(process.argv[2]).verify(request.body, request.headers);\n\
        try { new Webhook(process.argv[2]).verify(request.body + ' ', request.headers); } catch { console.log('verified'); }";
    let mut node = world.client("node");
    node.current_dir(&library).args(["-e", program]).arg(save(world, request)).arg(secret);
    Output::of(&mut node).exits(0).says("verified");
}

/// Passes the settings of package registries on, which the world's environment does not have.
fn copy_registry(command: &mut std::process::Command) {
    for (name, value) in
        std::env::vars().filter(|(name, _)| name.starts_with("PIP_") || name.to_ascii_lowercase().starts_with("npm_config_"))
    {
        command.env(name, value);
    }
    for (name, value) in [
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "https_proxy",
        "http_proxy",
        "NO_PROXY",
        "no_proxy",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
    ]
    .into_iter()
    .filter_map(|name| Some((name, std::env::var_os(name)?)))
    {
        command.env(name, value);
    }
    // The configuration of the user who runs the tests may name the registry.
    if let Some(home) = std::env::var_os("HOME") {
        command.env("HOME", home);
    }
}

fn webhook_to_an_internal_address_is_never_sent(world: &World) {
    let receiver = Receiver::start();
    world.restart(&[QUICK]);
    let port = receiver.port;
    // The hosts reach this machine, private networks, link-local services, and names that resolve to them.
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "0.0.0.0",
        "localhost",
        "LOCALHOST.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "127.255.255.254",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[fd00::1]",
        "[fe80::1]",
    ];
    let webhooks: String = hosts.iter().map(|host| format!("    - url: 'http://{host}:{port}/hook'\n")).collect();
    let repo = shop(world, &webhooks);
    repo.page("version one");
    repo.push().accepted();
    until("all webhooks were attempted", || {
        let log = log(world);
        // Different spellings of one URL are different webhooks.
        log.len() == hosts.len() && log.iter().all(|message| message["attempts"].as_u64() >= Some(1))
    });
    for message in log(world) {
        let error = message["error"].as_str().unwrap();
        assert!(error.contains("internal address") || error.contains("cannot resolve"), "{message:#}");
    }
    assert_eq!(receiver.connections(), 0);
    allow(world, "");
    world.larder(&["notify", "retry", "shop"]);
    let requests = receiver.wait_for(1);
    assert!(requests.iter().all(|request| request.line.starts_with("POST /hook")), "{requests:#?}");
}

fn webhook_is_delivered_again_until_its_receiver_accepts(world: &World) {
    let receiver = Receiver::start();
    allow(world, "");
    let repo = shop(world, &format!("    - {{url: 'http://127.0.0.1:{}/a?token=hidden', secret: {SECRET}}}\n", receiver.port));
    receiver.answer("503 Busy");
    repo.page("version one");
    repo.push().accepted();
    receiver.wait_for(2);
    world.kill9_server();
    receiver.answer("200 OK");
    until("the webhook is delivered", || log(world).iter().all(|message| message["state"] == "delivered"));
    let requests = receiver.requests();
    let ids: std::collections::BTreeSet<_> = requests.iter().map(|request| request.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 1, "a repeated webhook keeps its id");
    receiver.answer("302 Found\r\nLocation: http://127.0.0.1/elsewhere");
    repo.page("version two");
    repo.push().accepted();
    until("the redirect is refused", || log(world).get(1).is_some_and(|message| message["state"] == "failed"));
    assert!(log(world)[1]["error"].as_str().unwrap().contains("redirects are not followed"));
    let text = world.larder(&["notify", "log", "shop"]).ok().to_owned();
    assert!(
        !text.contains("hidden") && !fs::read_to_string(world.directory().join("server.log")).unwrap().contains("hidden"),
        "{text}"
    );
    assert!(receiver.requests().iter().all(|request| !request.line.contains("elsewhere")));
}

/// The receiver is outside, and answers with redirects to a service of the operator's network.
fn webhook_that_is_redirected_inside_reaches_nothing(world: &World) {
    let (receiver, inside) = (Receiver::start(), Receiver::start());
    allow(world, "");
    let repo = shop(world, &format!("    - {{url: 'http://127.0.0.1:{}/hook', secret: {SECRET}}}\n", receiver.port));
    repo.page("version one");
    repo.push().accepted();
    receiver.wait_for(1);
    for (number, status) in ["301", "302", "303", "307", "308"].into_iter().enumerate() {
        receiver.answer(&format!("{status} Elsewhere\r\nLocation: http://127.0.0.1:{}/admin", inside.port));
        world.larder(&["notify", "test", "shop"]).exits(1).says(&format!("answered {status}; redirects are not followed"));
        assert_eq!(log(world)[number + 1]["state"], "failed", "{status}");
    }
    assert_eq!((receiver.requests().len(), inside.connections()), (6, 0));
}

fn chat_servers_get_their_own_formats(world: &World) {
    let receiver = Receiver::start();
    allow(world, "");
    let webhooks: String = ["slack", "mattermost", "discord", "ntfy"]
        .iter()
        .map(|format| format!("    - {{url: 'http://127.0.0.1:{}/{format}', format: {format}}}\n", receiver.port))
        .collect();
    let repo = shop(world, &webhooks);
    repo.page("<!channel> @everyone & more");
    repo.push().accepted();
    let mut requests = receiver.wait_for(4);
    requests.sort_by_key(|request| request.line.clone());
    let paths: Vec<_> = requests.iter().map(|request| request.line.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(paths, ["/", "/discord", "/mattermost", "/slack"]);
    let [ntfy, discord, mattermost, slack] = [0, 1, 2, 3].map(|at: usize| requests[at].json());
    assert_eq!((&ntfy["topic"], &ntfy["priority"]), (&"ntfy".into(), &3.into()), "{ntfy:#}");
    assert_eq!(discord["allowed_mentions"]["parse"], serde_json::json!([]));
    assert!(!mattermost["text"].as_str().unwrap().contains("@everyone"), "{mattermost:#}");
    let text = slack["text"].as_str().unwrap();
    assert!(text.contains("&lt;!channel&gt; @everyone &amp; more") && text.contains("v1 is live"), "{text}");
}

/// The requests have the shapes of the recorded APIs: GitHub REST API 2022-11-28, GitLab API v4, Gitea API v1.
fn forges_get_the_status_of_each_deployment(world: &World) {
    let receiver = Receiver::start();
    let server = format!("http://127.0.0.1:{}", receiver.port);
    receiver.body("GET /api/v3/repos/owner/shop/deployments", "[]");
    receiver.body("POST /api/v3/repos/owner/shop/deployments HTTP", "{\"id\": 42}");
    let token = world.directory().join("forge.token");
    fs::write(&token, "geheim\n").unwrap();
    give_to_larder(world, &token);
    let mut before = 0;
    for kind in ["github", "gitlab", "gitea"] {
        let file = world.root().join("larder.yml");
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("forges:\n").next().unwrap().to_owned();
        let entry = format!(
            "forges:\n  shop:\n    repository: {server}/owner/shop\n    kind: {kind}\n    token_file: {}\n",
            token.display()
        );
        fs::write(&file, text + &entry).unwrap();
        world.restart(&[QUICK]);
        if kind == "github" {
            world.project("shop");
        }
        let repo = Repo::new(world, "shop");
        if kind != "github" {
            repo.git(&["pull", "--quiet", &repo.url(), "main"]).ok();
        }
        repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", RECIPE);
        let good = repo.page(&format!("page {kind}"));
        repo.push().accepted();
        let after = |before: usize, count: usize| receiver.wait_for(before + count)[before..].to_vec();
        let line = |request: &Received| request.line.trim_end_matches(" HTTP/1.1").to_owned();
        let shape = |request: &Received| (line(request), request.json()["state"].as_str().unwrap_or_default().to_owned());
        let last = match kind {
            "github" => {
                let requests = after(before, 5);
                let status = format!("POST /api/v3/repos/owner/shop/statuses/{good}");
                assert_eq!(shape(&requests[0]), (status.clone(), String::from("pending")));
                assert_eq!(shape(&requests[1]), (status, String::from("success")));
                assert_eq!(requests[0].json()["context"], "larder/production");
                assert_eq!(
                    line(&requests[2]),
                    format!("GET /api/v3/repos/owner/shop/deployments?sha={good}&environment=production&per_page=1")
                );
                assert_eq!(requests[3].json()["ref"], good);
                assert_eq!(
                    shape(&requests[4]),
                    (String::from("POST /api/v3/repos/owner/shop/deployments/42/statuses"), String::from("success"))
                );
                assert_eq!(requests[0].header("authorization"), "Bearer geheim");
                assert_eq!(requests[0].header("accept"), "application/vnd.github+json");
                5
            }
            "gitlab" => {
                let requests = after(before, 3);
                let status = format!("POST /api/v4/projects/owner%2Fshop/statuses/{good}");
                assert_eq!(shape(&requests[0]), (status.clone(), String::from("running")));
                assert_eq!(shape(&requests[1]), (status, String::from("success")));
                assert_eq!(line(&requests[2]), "POST /api/v4/projects/owner%2Fshop/deployments");
                let record = requests[2].json();
                assert_eq!(
                    (&record["sha"], &record["status"], &record["ref"]),
                    (&good.clone().into(), &"success".into(), &"main".into())
                );
                assert_eq!(
                    (requests[0].header("private-token"), &requests[0].json()["name"]),
                    ("geheim", &"larder/production".into())
                );
                3
            }
            _ => {
                let requests = after(before, 2);
                let status = format!("POST /api/v1/repos/owner/shop/statuses/{good}");
                assert_eq!(shape(&requests[0]), (status.clone(), String::from("pending")));
                assert_eq!(shape(&requests[1]), (status, String::from("success")));
                assert_eq!(requests[0].header("authorization"), "token geheim");
                assert!(requests[1].json()["target_url"].as_str().unwrap().starts_with("http://shop.localhost"));
                2
            }
        };
        before += last;
        if kind == "gitea" {
            repo.program(".larder/build", "#!/bin/sh\nexit 3\n");
            let broken = repo.commit("broken");
            repo.push().rejected();
            let requests = after(before, 2);
            assert_eq!(
                shape(&requests[1]),
                (format!("POST /api/v1/repos/owner/shop/statuses/{broken}"), String::from("failure"))
            );
        }
    }
    assert!(!fs::read_to_string(world.directory().join("server.log")).unwrap().contains("geheim"));
}

fn administrators_are_mailed_about_sites_disks_and_new_environments(world: &World) {
    let server = MailServer::start();
    let file = world.root().join("larder.yml");
    let text = fs::read_to_string(&file).unwrap();
    let mail =
        format!("mail:\n  smtp: smtp://127.0.0.1:{}\n  from: larder@example.com\n  admins: [admin@example.com]\n", server.port);
    fs::write(&file, text + &mail).unwrap();
    let points = "notify_delay=return(50);site_calm=return(6000);reports=return";
    world.restart(&[("FAILPOINTS", points)]);
    let subject = |text: &str| {
        until("the mail has arrived", || server.mails().iter().any(|mail| mail.subject().contains(text)));
        server.mails().into_iter().find(|mail| mail.subject().contains(text)).unwrap()
    };
    subject("weekly report").says("Free disk space");
    world.project("shop");
    let created = subject("[shop/production] created");
    created
        .says(&format!("git remote add production ssh://larder@localhost:{}/shop", world.ssh_port()))
        .says("http://shop.localhost");

    // The process exits whenever the file `stop` exists in its data.
    let repo = Repo::new(world, "shop");
    let program = "#!/bin/sh\n[ -e media/stop ] && { echo the database is gone; exit 9; }\nlarder static-server --root . &\n\
        while kill -0 $!; do [ -e media/stop ] && { kill $!; exit 9; }; sleep 0.1; done\n";
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", program);
    repo.write("larder.yml", format!("{RECIPE}data: [media]\n"));
    repo.page("version one");
    repo.push().accepted();
    world.larder(&["run", "shop", "--", "touch", "media/stop"]).ok();
    let down = subject("[shop/production] down");
    down.says("exits again and again").says("larder rollback shop").says("v1 (commit ");
    world.larder(&["run", "shop", "--", "rm", "media/stop"]).ok();
    let up = subject("[shop/production] up again");
    assert_eq!(up.header("References"), down.header("Message-ID"));
    let about_site =
        server.mails().iter().filter(|mail| mail.subject().ends_with("] down") || mail.subject().contains("up again")).count();
    assert_eq!(about_site, 2, "a flapping site gives two mails");
}
