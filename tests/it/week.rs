//! A week in a studio, as a story: two developers, a CI system, a sysadmin and a customer, with real ssh, git and larder on their laptops, and mails
//! that Debian's mail server receives.

use std::{cell::RefCell, fs, os::unix::fs::PermissionsExt};

use crate::{
    harness::{
        Laptop, World,
        cli::Output,
        in_one_mode,
        mail::{Mail, Mailbox},
    },
    notifications::configure,
};

in_one_mode!(a_studio_ships_a_shop_in_one_week);

fn a_studio_ships_a_shop_in_one_week(world: &World) {
    let Some(studio) = Studio::open(world) else { return };
    let Studio { sam, ann, ben, ci, .. } = &studio;

    // Monday. Sam, the sysadmin, creates the shop. Ann and Ben develop the shop, and the CI system brings it to the customer.
    sam.does("larder -r studio project create shop --mode final --branch main");
    studio.sysadmin_reads("[shop/production] created").serves("Nothing is deployed yet").who("Created by");
    sam.does("larder init shop --to staging");
    let created = studio.sysadmin_reads("[shop/staging] created");
    created.what("sam created shop/staging").who("Created by").back("destroys the whole project");
    sam.does("larder -r studio user grant ann shop deploy");
    let change = studio.sysadmin_reads("[larder] access changed: user grant");
    change.what("sam changed the access to shop").who("sam").why("ann deploy").serves("go on unchanged").back("larder audit");
    sam.does("larder -r studio user grant ben shop/staging push");
    sam.does("larder -r studio user grant ci shop/staging view");
    sam.does("larder -r studio user grant ci shop/production deploy");
    (0..3).for_each(|_| drop(studio.sysadmin_reads("[larder] access changed: user grant")));

    // Ann pushes the first page to staging, and the CI system promotes it to production.
    ann.starts_the_shop("The shop opens");
    ann.does("larder push staging");
    studio.team_reads("[shop/staging] v1 is live: The shop opens").who("ann (push to staging)").why("The shop opens (Ann)");
    ci.does("larder -r studio promote shop/staging --to production");
    studio.visitors_of("shop", "The shop opens");
    let live = studio.team_and_customer_read("[shop/production] v1 is live: The shop opens");
    live.what("v1 (commit").who("ci (release from").why("The shop opens (Ann)").serves("v1 serves visitors now");
    live.back("This is the first release, so there is no release to go back to");

    // Tuesday. Ben sets a price of 0. The tests of the shop fail, so nothing changes for visitors. Then Ben corrects the price.
    ben.clones_the_shop();
    ben.changes("index.html", "a chair, price: 0", "Sell chairs");
    ben.fails_to("git push staging HEAD:staging", "the price must not be 0");
    studio.visitors_of("staging--shop", "The shop opens");
    let failed = studio.team_reads(
        "[shop/staging] deployment of COMMIT failed: post_build: .larder/post_build exited 1: the price must not be 0",
    );
    failed.what("The deployment of").who("ben (push to staging)").why("the price must not be 0").why("Sell chairs (Ben)");
    failed.serves("v1 (commit").serves("still serves visitors").back("Nothing has to be undone");
    ben.changes("index.html", "a chair, price: 90", "Correct the price of chairs");
    ben.does("git push staging HEAD:staging");
    let corrected = studio.team_reads("[shop/staging] v2 is live: Correct the price of chairs");
    corrected.serves("v2 serves visitors now").why("Sell chairs (Ben)").back("larder rollback shop/staging v1");
    assert_eq!(corrected.header("In-Reply-To"), failed.header("Message-ID"), "the correction answers the mail about the failure");

    // Wednesday. From now on, production wants the approval of a second person.
    sam.does("larder -r studio protect shop/production --approval on");
    studio.sysadmin_reads("[larder] access changed: protect").why("approval true");
    ci.fails_to("larder -r studio promote shop/staging --to production", "wants the approval of");
    let wanted = studio.everyone_reads("[shop/production] COMMIT waits for the approval of a second person");
    wanted.what("ci wants to deploy").who("Requested by").why("Correct the price of chairs (Ben)");
    wanted.serves("v1 (commit").back("Nothing has changed for visitors");
    ann.does_what_the_mail_says(&wanted, "larder approve");
    let approved = studio.everyone_reads("[shop/production] COMMIT is approved");
    approved.what("ann approved the deployment of").who("Approved by").why("Sell chairs (Ben)").back("larder rollback shop");
    assert_eq!(approved.header("In-Reply-To"), wanted.header("Message-ID"), "the approval answers the mail about the request");
    ci.does("larder -r studio promote shop/staging --to production");
    studio.visitors_of("shop", "a chair, price: 90");
    let second = studio.team_and_customer_read("[shop/production] v2 is live: Correct the price of chairs");
    second.what("v2 (commit").who("ci").why("Sell chairs (Ben)").serves("v2 serves visitors now").back("larder rollback shop v1");

    // Thursday. The customer sells no chairs, and answers the mail. Ann goes back with the command in the mail.
    ann.does_what_the_mail_says(&second, "larder rollback");
    studio.visitors_of("shop", "The shop opens");
    let back = studio.team_and_customer_read("[shop/production] v3 is live: rollback to v1, COMMIT");
    back.what("ann rolled shop/production back").who("ann (larder rollback)").why("These commits are taken back");
    back.why("Sell chairs (Ben)").serves("v3 serves visitors now").back("larder rollback shop v2");

    // Friday. The customer takes stock, so nothing may change until Monday.
    sam.does("larder -r studio freeze shop/production --until 2999-12-24 --why stocktaking");
    let frozen = studio.everyone_reads("[shop/production] release freeze until Wed 2999-12-25 00:00 UTC");
    frozen.what("sam set a release freeze for shop/production").who("sam").why("stocktaking");
    frozen.serves("v3 (commit").back("larder freeze shop/production --end");
    ci.fails_to(
        "larder -r studio promote shop/staging --to production",
        "has a release freeze until Wed 2999-12-25 00:00 UTC: stocktaking (sam)",
    );
    studio.visitors_of("shop", "The shop opens");

    // Monday again.
    sam.does_what_the_mail_says(&frozen, "larder freeze");
    let ended = studio.everyone_reads("[shop/production] release freeze ended");
    ended.what("sam ended the release freeze").who("Ended by").serves("v3 (commit").back("larder freeze shop/production --until");
    assert_eq!(ended.header("In-Reply-To"), frozen.header("Message-ID"), "the end answers the mail about the release freeze");
    studio.nobody_got_another_mail();
}

const TEAM: &str = "team@example.com";
const CUSTOMER: &str = "customer@example.com";
const SYSADMIN: &str = "sysadmin@example.com";

/// The recipe of the shop. The customer hears of production only, and not of failed deployments.
const RECIPE: &str = "\
health: {timeout: 10s, interval: 20ms}
drain: 100ms
notify: {mail: [team@example.com]}
environments:
  production:
    notify:
      mail: [team@example.com, customer@example.com]
      events: [deployed, rolled-back, stuck, approval, freeze]
";

/// The tests of the shop.
const TESTS: &str = "#!/bin/sh\nif grep -q 'price: 0' index.html; then echo 'the price must not be 0' >&2; exit 1; fi\n";

/// The studio: its people, and the mails that were read so far.
struct Studio<'w> {
    world: &'w World,
    mailbox: Mailbox,
    /// The recipients and subjects of the mails that were read.
    read: RefCell<Vec<(&'static str, String)>>,
    sam: Person<'w>,
    ann: Person<'w>,
    ben: Person<'w>,
    ci: Person<'w>,
}

/// A person, or a CI system, with a laptop and a key.
struct Person<'w> {
    name: &'static str,
    laptop: Laptop<'w>,
}

impl<'w> Studio<'w> {
    fn open(world: &'w World) -> Option<Studio<'w>> {
        let mailbox = Mailbox::start(world);
        for name in ["sam", "ann", "ben", "ci"] {
            world.key(name);
            let mut words = vec!["user", "add", name];
            words.extend((name == "sam").then_some("--admin"));
            world.larder(&[&words[..], &["--key-file", &world.public_key(name)]].concat()).ok();
        }
        configure(world, &format!("smtp://localhost:{}", mailbox.port()), &format!("  admins: [{SYSADMIN}]\n"));
        let [sam, ann, ben, ci] = ["sam", "ann", "ben", "ci"].map(|name| Person::new(world, name));
        Some(Studio { world, mailbox, read: RefCell::default(), sam: sam?, ann: ann?, ben: ben?, ci: ci? })
    }

    /// Waits for the next mail to a recipient, and compares its subject, in which COMMIT stands for each commit.
    #[track_caller]
    fn reads(&self, recipient: &'static str, subject: &str) -> Mail {
        let before = self.read.borrow().iter().filter(|(to, _)| *to == recipient).count();
        let mail = self.mailbox.wait_for(recipient, before + 1)[before].clone();
        assert_eq!(without_commits(&mail.subject()), subject, "the next mail to {recipient}");
        assert_eq!(mail.from, "larder@example.com");
        self.read.borrow_mut().push((recipient, mail.subject()));
        mail
    }

    #[track_caller]
    fn sysadmin_reads(&self, subject: &str) -> Mail {
        self.reads(SYSADMIN, subject)
    }

    #[track_caller]
    fn team_reads(&self, subject: &str) -> Mail {
        self.reads(TEAM, subject)
    }

    #[track_caller]
    fn team_and_customer_read(&self, subject: &str) -> Mail {
        self.reads(TEAM, subject);
        self.reads(CUSTOMER, subject)
    }

    #[track_caller]
    fn everyone_reads(&self, subject: &str) -> Mail {
        self.reads(SYSADMIN, subject);
        self.team_and_customer_read(subject)
    }

    #[track_caller]
    fn visitors_of(&self, host: &str, text: &str) {
        self.world.get(host, "/").holds(text);
    }

    #[track_caller]
    fn nobody_got_another_mail(&self) {
        let mails = self.mailbox.mails();
        let subjects: Vec<_> = mails.iter().map(|mail| (mail.to.join(","), mail.subject())).collect();
        assert_eq!(mails.len(), self.read.borrow().len(), "{subjects:#?}");
        let mut ids: Vec<_> = mails.iter().map(|mail| (mail.to.clone(), mail.header("Message-ID"))).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), mails.len(), "a mail came twice: {subjects:#?}");
    }
}

impl<'w> Person<'w> {
    fn new(world: &'w World, name: &'static str) -> Option<Person<'w>> {
        let laptop = Laptop::new(world, name)?;
        let url = laptop.url("");
        laptop.servers(&format!(
            "studio: {{url: {url}}}\nstaging: {{url: {url}, id: shop/staging}}\nproduction: {{url: {url}, id: shop/production}}\n"
        ));
        let person = Person { name, laptop };
        person.laptop.git("shop", &["init", "--quiet"]).ok();
        let full = name[..1].to_uppercase() + &name[1..];
        person.laptop.git("shop", &["config", "user.name", &full]).ok();
        Some(person)
    }

    fn runs(&self, line: &str) -> Output {
        let words = shlex::split(line).unwrap();
        Output::of(self.command(&words[0]).args(&words[1..]))
    }

    fn command(&self, program: &str) -> std::process::Command {
        match program {
            "larder" => self.laptop.larder_command("shop"),
            program => self.laptop.command(program, "shop"),
        }
    }

    /// Runs a command that succeeds.
    #[track_caller]
    fn does(&self, line: &str) {
        self.runs(line).exits(0);
    }

    /// Runs a command that is refused or fails with these words.
    #[track_caller]
    fn fails_to(&self, line: &str, words: &str) {
        let said = self.runs(line);
        assert_ne!(said.status, 0, "{} should have failed: {said}", self.name);
        said.says(words);
    }

    /// Runs the command that begins with these words, as the mail states it.
    #[track_caller]
    fn does_what_the_mail_says(&self, mail: &Mail, begin: &str) {
        let text = mail.part("text/plain");
        let line = text.lines().map(str::trim).find(|line| line.starts_with(begin));
        let line = line.unwrap_or_else(|| panic!("no {begin} in {text}"));
        self.does(&line.replacen("larder", "larder -r studio", 1));
    }

    fn starts_the_shop(&self, page: &str) {
        let directory = self.laptop.directory("shop/.larder");
        fs::write(directory.join("post_build"), TESTS).unwrap();
        fs::set_permissions(directory.join("post_build"), fs::Permissions::from_mode(0o755)).unwrap();
        let directory = self.laptop.directory("shop");
        fs::write(directory.join("larder.yml"), RECIPE).unwrap();
        fs::write(directory.join("Procfile"), "web: exec larder static-server --root .\n").unwrap();
        self.changes("index.html", page, page);
        self.does("larder init shop --to staging");
    }

    fn clones_the_shop(&self) {
        self.laptop.git("shop", &["remote", "add", "staging", &self.laptop.url("shop")]).ok();
        self.does("git pull --quiet staging staging");
    }

    /// Writes and commits a file.
    fn changes(&self, file: &str, text: &str, title: &str) {
        fs::write(self.laptop.directory("shop").join(file), format!("<!doctype html>\n<p>{text}</p>\n")).unwrap();
        self.laptop.git("shop", &["add", "--all"]).ok();
        self.laptop.git("shop", &["commit", "--quiet", "--message", title]).ok();
    }
}

/// Replaces each beginning of a commit id.
fn without_commits(text: &str) -> String {
    let is_commit = |word: &str| word.len() >= 7 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split(' ').map(|word| if is_commit(word) { "COMMIT" } else { word }).collect::<Vec<_>>().join(" ")
}
