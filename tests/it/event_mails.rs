//! Mails about events that are no deployments: restore points, drills, the disk, approvals, release freezes, and reports. Each mail reaches the
//! right recipients, and answers what happened, who caused it, why, what serves, and what the way back is.

use std::fs;

use crate::{
    backup_schedule::{YEARLY, forget_runs_since, record, summary},
    harness::{
        Repo, World, in_one_mode,
        mail::{Mail, MailServer},
        until,
    },
    notifications::{QUICK, RECIPE, configure, hostile_commit, log},
};

in_one_mode!(
    approval_and_release_freeze_are_mailed_to_the_project_and_to_administrators,
    monthly_summary_and_weekly_report_count_deployments,
);

/// Returns the first mail to a recipient whose subject contains `subject`, and waits for the mail.
#[track_caller]
fn mail_to(server: &MailServer, recipient: &str, subject: &str) -> Mail {
    let find = || server.mails().into_iter().find(|mail| mail.to == [recipient] && mail.subject().contains(subject));
    let came = crate::harness::within(std::time::Duration::from_secs(60), || find().is_some());
    let subjects: Vec<_> = server.mails().iter().map(|mail| (mail.to.clone(), mail.subject())).collect();
    assert!(came, "no mail {subject:?} to {recipient}: {subjects:#?}");
    find().unwrap()
}

/// Returns the recipients of the mails whose subject contains `subject`.
fn recipients(server: &MailServer, subject: &str) -> Vec<String> {
    let mails = server.mails();
    let mut to: Vec<_> = mails.iter().filter(|mail| mail.subject().contains(subject)).flat_map(|mail| mail.to.clone()).collect();
    to.sort();
    to
}

const BOTH: [&str; 2] = ["admin@example.com", "team@example.com"];

#[test]
fn failures_of_restore_points_drills_and_the_disk_are_mailed_until_they_end() {
    let Some(world) = World::configured(YEARLY) else { return };
    let server = MailServer::start();
    configure(&world, &format!("smtp://127.0.0.1:{}", server.port), "  admins: [admin@example.com]\n");
    world.project("shop");
    let repo = Repo::new(&world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", format!("{RECIPE}data: [media]\nnotify: {{mail: [team@example.com], events: [backup]}}\n"));
    repo.program(".larder/drill", "#!/bin/sh\n[ ! -e drill-fails ] || { echo the copy is empty >&2; exit 1; }\n");
    repo.write("drill-fails", "").page("version one");
    repo.push().accepted();
    until("the schedule has begun", || record(&world).exists());
    world.larder(&["run", "shop", "--", "sh", "-ec", "echo upload > media/upload"]).ok();
    let file = world.root().join("larder.yml");
    let normal = fs::read_to_string(&file).unwrap();

    // The disk is full, so a scheduled restore point fails.
    world.stop();
    forget_runs_since(&world, "2025-01-01T00:00:00Z");
    fs::write(&file, normal.replace("disk_reserve: 64M", "disk_reserve: 900000G")).unwrap();
    world.start(&[QUICK]);
    let failed = mail_to(&server, "team@example.com", "a restore point failed");
    failed
        .what("A scheduled restore point of shop/production failed")
        .who("the schedule of this server")
        .why("bytes of disk space are needed");
    failed.serves("v1 (commit").serves("serves visitors").back("larder backup take shop");
    let full = mail_to(&server, "admin@example.com", "the disk is nearly full");
    full.what("nearly full")
        .who("larder, which watches the disk")
        .why("must stay free")
        .serves("The applications go on")
        .back("larder disk");

    // The disk has space again. The restore point succeeds, but the release fails on the restored data.
    world.stop();
    forget_runs_since(&world, "2025-01-01T00:00:00Z");
    fs::write(&file, &normal).unwrap();
    world.start(&[QUICK]);
    let works = mail_to(&server, "team@example.com", "restore points work again");
    works
        .what("was taken and read back")
        .who("the schedule")
        .why("The application is not affected")
        .serves("v1 (commit")
        .back("larder backup list shop");
    assert_eq!(works.header("References"), failed.header("Message-ID"));
    let space = mail_to(&server, "admin@example.com", "the disk has space again");
    space.what("has space again").who("larder").why("are free").serves("The applications went on").back("larder disk");
    assert_eq!(space.header("References"), full.header("Message-ID"));
    let drill = mail_to(&server, "team@example.com", "a drill failed");
    drill
        .what("A drill could not restore")
        .who("the schedule")
        .why("the copy is empty")
        .serves("v1 (commit")
        .back("larder backup drill shop");

    // The next release passes the drill. A scheduled run that is not news sends no mail.
    repo.remove("drill-fails").page("version two");
    repo.push().accepted();
    let last_run = summary(&world)["last_run"].clone();
    world.stop();
    forget_runs_since(&world, "2025-01-01T00:00:00Z");
    // The last drill was long ago.
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(record(&world)).unwrap()).unwrap();
    state["drill"]["begun"] = "2025-01-01T00:00:00Z".into();
    fs::write(record(&world), state.to_string()).unwrap();
    world.start(&[QUICK]);
    let again = mail_to(&server, "team@example.com", "drills work again");
    again.what("A drill restored the restore point").who("the schedule").serves("v2 (commit").back("larder backup list shop");
    assert_eq!(again.header("References"), drill.header("Message-ID"));
    until("the run has ended", || summary(&world)["last_run"] != last_run);
    until("all mails are delivered", || log(&world).iter().all(|message| message["state"] == "delivered"));
    for subject in ["a restore point failed", "restore points work again", "a drill failed", "drills work again"] {
        assert_eq!(recipients(&server, subject), BOTH, "{subject}");
    }
    for subject in ["the disk is nearly full", "the disk has space again", "[shop/production] created"] {
        assert_eq!(recipients(&server, subject), BOTH[..1], "{subject}");
    }
    assert_eq!(recipients(&server, "is live"), Vec::<String>::new(), "the recipe names the event `backup` only");
    world.end();
}

fn approval_and_release_freeze_are_mailed_to_the_project_and_to_administrators(world: &World) {
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "  admins: [admin@example.com]\n");
    world.project("shop");
    world.key("ann");
    world.larder(&["user", "add", "ann", "--key-file", &world.public_key("ann")]).ok();
    world.larder(&["user", "grant", "ann", "shop", "deploy"]).ok();
    let granted = mail_to(&server, "admin@example.com", "access changed: user grant");
    granted
        .what("operator changed the access to shop")
        .who("Changed by")
        .why("ann deploy")
        .serves("unchanged")
        .back("larder audit");
    world.key("spare");
    world.larder(&["key", "add", "ann", "--key-file", &world.public_key("spare")]).ok();
    let key = mail_to(&server, "admin@example.com", "access changed: key add");
    key.what("operator changed the access to this server").who("Changed by").why("ann").back("larder audit");
    world.larder(&["protect", "shop/production", "--approval", "on"]).ok();
    mail_to(&server, "admin@example.com", "access changed: protect").what("changed the access to shop/production");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", format!("{RECIPE}notify: {{mail: [team@example.com], events: [approval, freeze]}}\n"));
    repo.page("version one");
    // Nothing is live yet, so no recipe names recipients of the project.
    repo.push().rejected_with("wants the approval");
    let first = mail_to(&server, "admin@example.com", "waits for the approval of a second person");
    first
        .what("alice wants to deploy")
        .why("version one (Alice)")
        .serves("Nothing is live yet")
        .back(&format!("larder approve shop/production {}", repo.head()));
    world.ssh("ann", &["approve", "shop", &repo.head()]).exits(0);
    let approved = mail_to(&server, "admin@example.com", "is approved");
    approved.what("ann approved").why("version one (Alice)").serves("Nothing is live yet");
    repo.push().accepted();

    // The server has the commits of a refused push during the push only, and their titles are those of a stranger.
    repo.page("version two");
    hostile_commit(&repo);
    let head = repo.head();
    // A request that is repeated on one day is mailed once.
    repo.push().rejected_with("wants the approval");
    repo.push().rejected_with("wants the approval");
    let wanted = mail_to(&server, "team@example.com", &format!("{} waits for the approval", &head[..10]));
    wanted.what("alice wants to deploy").who("alice (push to main)").why("A second person must approve the commit first");
    wanted.serves("v1 (commit").back("Nothing has changed for visitors");
    world.ssh("alice", &["approve", "shop/production", &head, "--override", "'the shop is closed'"]).exits(0);
    let permitted = mail_to(&server, "team@example.com", "is permitted in spite of every protection");
    for mail in [&wanted, &permitted] {
        mail.why("Changes that the deployment would bring").why("version two (Alice)").why("{{ 7*7 }} \u{fc} (Eve");
        assert!(!mail.part("text/plain").contains("version one"), "the live release has this commit");
        assert!(mail.header("Bcc").is_none() && !mail.part("text/html").contains("<img"), "{}", mail.source);
        for part in [mail.part("text/plain"), mail.part("text/html")] {
            assert!(!part.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{part:?}");
        }
    }
    permitted
        .what("alice permitted the deployment of")
        .who("Approved by")
        .why("the shop is closed")
        .serves("v1 (commit")
        .back("larder rollback shop");
    assert_eq!(permitted.header("References"), wanted.header("Message-ID"));

    // A release freeze of the whole project, and a request that is refused, which is no event.
    world.ssh("alice", &["freeze", "shop", "--why", "'stocktaking <b>'"]).exits(0);
    let frozen = mail_to(&server, "team@example.com", "[larder] shop: release freeze until a person ends it");
    frozen
        .what("alice set a release freeze for shop")
        .who("Set by")
        .why("stocktaking <b>")
        .serves("rollbacks are possible")
        .back("larder freeze shop --end");
    world.ssh("ann", &["freeze", "shop", "--end"]).exits(3);
    world.ssh("alice", &["freeze", "shop", "--end"]).exits(0);
    let ended = mail_to(&server, "team@example.com", "[larder] shop: release freeze ended");
    ended
        .what("alice ended the release freeze of shop")
        .who("Ended by")
        .serves("goes on unchanged")
        .back("larder freeze shop --until");
    assert_eq!(ended.header("References"), frozen.header("Message-ID"));
    until("all mails are delivered", || log(world).iter().all(|message| message["state"] == "delivered"));
    for subject in
        [format!("{} waits", &head[..10]).as_str(), "permitted in spite", "release freeze until", "release freeze ended"]
    {
        until("all recipients have the mail", || recipients(&server, subject) == BOTH);
    }
    assert_eq!(recipients(&server, "is live"), Vec::<String>::new(), "the recipe names the events `approval` and `freeze` only");
}

fn monthly_summary_and_weekly_report_count_deployments(world: &World) {
    let server = MailServer::start();
    configure(world, &format!("smtp://127.0.0.1:{}", server.port), "  admins: [admin@example.com]\n");
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n");
    repo.write("larder.yml", format!("{RECIPE}notify: {{mail: [team@example.com], events: [summary]}}\n"));
    for page in ["version one", "version two"] {
        repo.page(page);
        repo.push().accepted();
    }
    world.larder(&["rollback", "shop"]).ok();
    repo.program(".larder/build", "#!/bin/sh\nexit 1\n").commit("broken");
    repo.push().rejected();
    // The report names keys and authorities that expire within two weeks.
    world.larder(&["user", "add", "ci"]).ok();
    for (name, expires) in [("runner", "3d"), ("laptop", "90d")] {
        world.key(name);
        let key = world.public_key(name);
        world.larder(&["key", "add", "ci", "--key-file", &key, "--key-name", name, "--expires", expires]).ok();
        world.key(&format!("ca-{name}"));
        let key = world.public_key(&format!("ca-{name}"));
        world.larder(&["user", "ca", "add", name, "--key-file", &key, "--expires", expires]).ok();
    }
    // The period of the reports begins with the year 1970.
    world.restart(&[("FAILPOINTS", "notify_delay=return(50);reports=return")]);
    let counts = "4 deployments, 1 failed, 1 rollback";
    let month = mail_to(&server, "team@example.com", "shop: summary of January 1970");
    month
        .what("The summary of shop")
        .why(counts)
        .serves("live: v3 (commit")
        .why("needs attention: the last deployment, of")
        .who("larder, on the first day")
        .back("larder releases shop");
    let week = mail_to(&server, "admin@example.com", "weekly report: 3 points need attention");
    week.what("3 points need attention")
        .why("shop/production: the last deployment, of")
        .why("the login key runner of ci expires at ")
        .why("the certificate authority runner expires at ")
        .serves("Free disk space")
        .who("larder, each Monday")
        .back("larder status");
    let text = week.part("text/plain");
    assert!(!text.contains("laptop"), "{text}");
    assert!(text.find("Needs attention") < text.find("Free disk space"), "{text}");
    assert_eq!(recipients(&server, "summary of"), BOTH[1..]);
    assert_eq!(recipients(&server, "weekly report"), BOTH[..1]);
}
