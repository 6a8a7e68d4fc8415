//! Random deployments of all kinds with failures before and after random steps: the mail about each deployment has the verdict of its journal, and
//! names the release that serves.
//!
//! Each failure comes from a shuffled deck with one card for each step of each plan, before and after its work. `LARDER_TEST_RUNS` sets the
//! number of runs, and `LARDER_TEST_SEED` repeats a run. With `LARDER_TEST_THOROUGH`, there are 500 runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use serde_json::Value;

use crate::{
    harness::{Repo, World, cli::Output, in_one_mode, mail::MailServer, state::names, until},
    notifications::configure_with,
};

in_one_mode!(verdict_in_mail_is_verdict_in_journal);

/// The ways to deploy. Each has a plan of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A push to production, which builds.
    Push,
    /// A push to an environment that deploys in place.
    InPlace,
    /// A promotion to an environment that does not build.
    Promote,
    /// A rollback of production.
    Rollback,
    /// A rollback of production with the data of a restore point.
    WithData,
}

const KINDS: [Kind; 5] = [Kind::Push, Kind::InPlace, Kind::Promote, Kind::Rollback, Kind::WithData];

impl Kind {
    fn environment(self) -> &'static str {
        match self {
            Kind::Push | Kind::Rollback | Kind::WithData => "production",
            Kind::InPlace => "place",
            Kind::Promote => "copy",
        }
    }
}

/// A generator of random numbers whose state follows from a seed (xorshift).
struct Random(u32);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % limit
    }
}

/// The end of one deployment as the person who requested it sees it.
#[derive(Debug)]
struct Seen {
    environment: &'static str,
    deployment: String,
    status: i32,
    /// The journal at the end, because the records of old deployments are removed.
    journal: Vec<Value>,
    /// The page that serves afterwards; `None` for a frozen environment, whose state is uncertain.
    page: Option<String>,
}

struct Studio<'w> {
    world: &'w World,
    repo: Repo<'w>,
    /// The file with the failures of the next deployment.
    faults: PathBuf,
    /// The page of each commit.
    pages: BTreeMap<String, String>,
    /// The releases of production that stay: their names, commits and restore points.
    kept: Vec<(String, String, String)>,
    /// The deployments so far.
    known: BTreeSet<(&'static str, String)>,
}

impl<'w> Studio<'w> {
    /// Deploys once in each way, without failures.
    fn open(world: &'w World, faults: PathBuf) -> Studio<'w> {
        world.project("shop");
        let create = |words: &[&str]| drop(world.larder(&[&["project", "create", "shop"][..], words].concat()).ok().to_owned());
        create(&["--env", "copy", "--mode", "final", "--branch", "copy"]);
        create(&["--env", "place", "--branch", "place", "--strategy", "in-place"]);
        let repo = Repo::new(world, "shop");
        repo.write("Procfile", "web: exec larder static-server --root .\n");
        Studio { world, repo, faults, pages: BTreeMap::new(), kept: Vec::new(), known: BTreeSet::new() }
    }

    fn journal(&self, environment: &str, deployment: &str) -> Vec<Value> {
        let path = self.deployments(environment).join(deployment).join("journal.jsonl");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
    }

    fn deployments(&self, environment: &str) -> PathBuf {
        self.world.root().join("projects/shop").join(environment).join("deployments")
    }

    /// Starts a deployment and follows it to its end.
    fn request(&mut self, kind: Kind, number: usize, upgrades: bool) -> Output {
        let (title, back) = (format!("page {number}"), &self.kept[..]);
        match kind {
            Kind::Push | Kind::InPlace => {
                let upgrade = if upgrades { "upgrade: {run: 'true', safety: hold}\n" } else { "" };
                let recipe =
                    "health: {timeout: 10s, interval: 20ms}\ndrain: 100ms\nsmoke: [/]\nnotify: {mail: [team@example.com]}\n";
                self.repo.write("larder.yml", format!("{recipe}data: [media]\n{upgrade}"));
                let commit = self.repo.page(&title);
                self.pages.insert(commit, title);
                let branch = if kind == Kind::Push { "main" } else { "place" };
                self.repo.push_as(&[&format!("HEAD:refs/heads/{branch}")]).0
            }
            // The two releases that stay are promoted in turn.
            Kind::Promote => self.world.larder(&["promote", "shop/production", &back[number % 2].0, "--to", "copy"]),
            Kind::Rollback | Kind::WithData => {
                // A rollback to the live release is refused.
                let live = self.repo.live();
                let is_live = |at: usize| live.as_ref() == Some(&back[at].1);
                let at = if is_live(number % 2) { 1 - number % 2 } else { number % 2 };
                let (release, _, point) = &back[at];
                let data = ["--with-data", "--point", point, "--confirm", "shop"];
                let data = if kind == Kind::WithData { &data[..] } else { &[] };
                self.world.larder(&[&["rollback", "shop", release], data].concat())
            }
        }
    }

    /// Deploys, and returns the end. The request must have made one deployment.
    fn deploy(&mut self, kind: Kind, number: usize, upgrades: bool, faults: &[String]) -> Seen {
        fs::write(&self.faults, faults.join("\n")).unwrap();
        let said = self.request(kind, number, upgrades);
        let environment = kind.environment();
        let new: Vec<_> = names(&self.deployments(environment))
            .into_iter()
            .filter(|name| !self.known.contains(&(environment, name.clone())))
            .collect();
        assert_eq!(new.len(), 1, "{kind:?} with {faults:?} made the deployments {new:?}: {said}");
        let deployment = new[0].clone();
        self.known.insert((environment, deployment.clone()));
        let outcome = |studio: &Studio| {
            ending(&studio.journal(environment, &deployment)).map(|end| end["outcome"].as_str().unwrap().to_owned())
        };
        until("the deployment has its end", || outcome(self).is_some());
        let is_stuck = outcome(self).as_deref() == Some("stuck");
        let journal = self.journal(environment, &deployment);
        let host = if environment == "production" { String::from("shop") } else { format!("{environment}--shop") };
        let page = (!is_stuck).then(|| self.world.get(&host, "/").body);
        if is_stuck {
            fs::write(&self.faults, "").unwrap();
            self.world.larder(&["deploy", &format!("shop/{environment}"), "--unfreeze"]).exits(0);
        }
        Seen { environment, deployment, status: said.status, journal, page }
    }
}

/// Returns the first end of a deployment. A stuck deployment ends once more when a person unfreezes its environment.
fn ending(journal: &[Value]) -> Option<Value> {
    journal.iter().find(|event| event["event"] == "ended").cloned()
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn verdict_in_mail_is_verdict_in_journal(world: &World) {
    let server = MailServer::start();
    let faults = world.directory().join("faults");
    fs::write(&faults, "").unwrap();
    let points = format!("notify_delay=return(50);listed=return({})", faults.display());
    let smtp = format!("smtp://127.0.0.1:{}", server.port);
    configure_with(world, &smtp, "", &[("FAILPOINTS", &points)]);
    let runs = number("LARDER_TEST_RUNS").unwrap_or(if std::env::var_os("LARDER_TEST_THOROUGH").is_some() { 500 } else { 8 });
    let seed = number("LARDER_TEST_SEED").unwrap_or(std::process::id() as usize);
    eprintln!("{runs} runs, LARDER_TEST_SEED={seed}");
    let mut random = Random(seed as u32 | 1);

    let mut studio = Studio::open(world, faults);
    let mut seen = Vec::new();
    let mut plans = BTreeMap::new();
    for number in 0..2 {
        seen.push(studio.deploy(Kind::Push, number, true, &[]));
        let point = world.larder(&["--json", "backup", "take", "shop"]).json()["id"].as_str().unwrap().to_owned();
        let release = format!("v{}", number + 1);
        world.larder(&["release", "pin", "shop", &release]).ok();
        studio.kept.push((release, studio.repo.head(), point));
    }
    for kind in KINDS {
        seen.push(studio.deploy(kind, 10 + plans.len(), false, &[]));
        let opened = studio.journal(kind.environment(), &seen.last().unwrap().deployment)[0].clone();
        let plan: Vec<_> = opened["plan"].as_array().unwrap().iter().map(|step| step.as_str().unwrap().to_owned()).collect();
        plans.insert(kind, plan);
    }
    let cards: Vec<(Kind, usize, bool)> = KINDS
        .iter()
        .flat_map(|kind| (0..plans[kind].len()).flat_map(|step| [(*kind, step, false), (*kind, step, true)]))
        .collect();
    let (mut deck, mut drawn, mut failed_at) = (Vec::new(), 0, BTreeSet::new());
    for run in 0..runs {
        let upgrades = random.below(2) == 0;
        // Every fifth deployment has no failure.
        let (kind, faults) = if random.below(5) == 0 {
            (KINDS[random.below(KINDS.len())], Vec::new())
        } else {
            if deck.is_empty() {
                deck = cards.clone();
                (1..deck.len()).rev().for_each(|at| deck.swap(at, random.below(at + 1)));
            }
            let (kind, step, late) = deck.pop().unwrap();
            let mut faults = vec![format!("step.{}{}", plans[&kind][step], if late { ".late" } else { "" })];
            // Sometimes a step that was done cannot be reverted, either.
            if random.below(8) == 0 {
                faults.push(format!("undo.{}", plans[&kind][random.below(step + 1)]));
            }
            drawn += 1;
            failed_at.insert((kind, step, late));
            (kind, faults)
        };
        eprintln!("run {run}: {kind:?} {faults:?}");
        seen.push(studio.deploy(kind, 100 + run, upgrades, &faults));
    }
    let counts = compare(&studio, &server, &seen);
    let (failures, all) = (failed_at.len(), cards.len());
    eprintln!("{runs} runs, failures at {failures} of {all} points: {counts:?} (LARDER_TEST_SEED={seed})");
    assert!(drawn < all || failures == all, "a step did not fail");
}

/// Compares the mail about each deployment with its journal, with the exit status of the request, and with the page that serves.
fn compare(studio: &Studio, server: &MailServer, seen: &[Seen]) -> BTreeMap<String, usize> {
    // The files of the queue name the event of each `Message-ID`.
    let queue = studio.world.root().join("state/notify");
    let records = || -> Vec<Value> {
        let files = names(&queue).into_iter().filter(|name| name.ends_with(".json"));
        files.filter_map(|name| serde_json::from_slice(&fs::read(queue.join(name)).ok()?).ok()).collect()
    };
    let of = |records: &[Value], seen: &Seen| -> Vec<Value> {
        let environment = format!("shop/{}", seen.environment);
        let is_of = |record: &&Value| {
            let event = record["event"].as_str().unwrap();
            record["environment"] == environment.as_str() && event.starts_with(&seen.deployment) && record["kind"] != "unfrozen"
        };
        records.iter().filter(is_of).cloned().collect()
    };
    until("each deployment has its mail", || {
        let records = records();
        seen.iter().all(|seen| !of(&records, seen).is_empty()) && records.iter().all(|record| record["state"] == "delivered")
    });
    let (records, mails) = (records(), server.mails());
    let mut live: BTreeMap<&str, (u64, String)> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for seen in seen {
        let found = of(&records, seen);
        assert_eq!(found.len(), 1, "{seen:?} has the mails {found:#?}");
        let id = found[0]["message_id"].as_str().unwrap();
        let with_id: Vec<_> = mails.iter().filter(|mail| mail.header("Message-ID").as_deref() == Some(id)).collect();
        assert_eq!(with_id.len(), 1, "{id} arrived {} times", with_id.len());
        let (mail, kind) = (with_id[0], found[0]["kind"].as_str().unwrap().to_owned());
        let journal = &seen.journal;
        let (opened, ended) = (&journal[0], ending(journal).unwrap());
        let commit = opened["commit"].as_str().unwrap();
        let outcome = ended["outcome"].as_str().unwrap();
        match (outcome, kind.as_str()) {
            ("live", "deployed" | "rolled_back") => {
                let number = ended["number"].as_u64().unwrap();
                mail.what(&format!("v{number}")).serves(&format!("v{number} serves visitors now."));
                live.insert(seen.environment, (number, commit.to_owned()));
                assert_eq!(seen.status, 0, "{seen:?}");
            }
            ("refused" | "rolled_back", "failed") | ("stuck", "stuck") => {
                mail.what(&commit[..10])
                    .why(ended["fault"]["why"].as_str().unwrap())
                    .why(ended["fault"]["phase"].as_str().unwrap());
                let number = live.get(seen.environment).map(|(number, _)| format!("v{number}"));
                match (number, outcome) {
                    (Some(number), "stuck") => mail.serves(&format!("{number} was live before")).back("--unfreeze"),
                    (Some(number), _) => mail.serves(&format!("{number} (commit ")).serves("still serves visitors"),
                    (None, "stuck") => mail.serves("The state of the application is uncertain"),
                    (None, _) => mail.serves("Nothing is live yet"),
                };
                assert_eq!(seen.status, 1, "{seen:?}");
            }
            other => panic!("the journal and the mail differ: {other:?}: {}", mail.subject()),
        }
        if let (Some(page), Some((_, commit))) = (&seen.page, live.get(seen.environment)) {
            let expected = &studio.pages[commit];
            assert!(page.contains(&format!("<title>{expected}</title>")), "{seen:?} (expected {expected})");
        }
        *counts.entry(format!("{outcome} {kind}")).or_default() += 1;
    }
    counts
}
