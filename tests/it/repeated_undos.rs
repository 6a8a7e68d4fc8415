//! Undos that fail, and are repeated by `larder deploy --unfreeze` after the undos of earlier steps: code and data are afterwards those of
//! before the deployment, and no acknowledged write is lost, also no write that the old release acknowledged while the environment was frozen.
//!
//! By default, a few undos fail, one of them after the commit point. With `LARDER_TEST_THOROUGH`, the undo of each step up to the switch fails
//! before and after its work, with and without a kill of all processes before the unfreeze, and the undos after the commit point fail, too.
//! The undos of editable environments are in `editable_kills.rs`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::harness::{
    Repo, World, in_one_mode, installed,
    ledger::{Database, RECIPE, Sqlite, Writer, application, data, files, lines},
    state::names,
    thorough, until,
};

in_one_mode!(
    upgrade_with_a_hold_whose_undo_fails_is_unfrozen,
    deployment_in_place_whose_undo_fails_is_unfrozen,
    undo_that_fails_after_the_commit_point_is_unfrozen,
);

/// The processes of the application. A web process writes its version into the data as long as it runs. The other process writes numbers into the
/// data, and acknowledges each number in its log.
const PROCFILE: &str = r#"web: (while :; do cat version >> "$LARDER_DATA/uploads/beats"; sleep 0.05; done) & exec python3 app.py $PORT
worker: while :; do n=$(date +%s%N); echo $n >> "$LARDER_DATA/uploads/numbers" && echo wrote $n; sleep 0.05; done
"#;

/// An undo that fails, and the step that fails before.
struct Case {
    /// The failpoint of the step, such as `deploy.switch.late`.
    fails: String,
    /// The failpoint of the undo, such as `deploy.slot.late`.
    undo: String,
    /// True if all processes are killed, and the server is started again, before the unfreeze.
    is_killed: bool,
}

/// Everything that a failed deployment must leave as it was: the rows of the database, the other files of the data, and the tree of a release
/// that runs in place.
#[derive(Debug, PartialEq, Eq)]
struct Everything {
    rows: String,
    files: BTreeMap<PathBuf, String>,
    tree: BTreeMap<PathBuf, String>,
}

struct Shop<'w> {
    world: &'w World,
    repo: Repo<'w>,
    recipe: String,
    database: Sqlite,
    faults: PathBuf,
    acknowledged: Vec<String>,
}

impl<'w> Shop<'w> {
    /// Creates a project with one release. `strategy` is a line of the recipe, or empty. Returns `None` without Python.
    fn new(world: &'w World, strategy: &str) -> Option<Shop<'w>> {
        installed("python3")?;
        let database = Sqlite(data(world).join("app.sqlite3"));
        world.project("shop");
        let repo = Repo::new(world, "shop");
        let recipe = format!("{strategy}{RECIPE}scale: {{worker: 1}}\nenv: {{DATABASE_URL: \"{}\"}}\n", database.url());
        repo.write("Procfile", PROCFILE).write("app.py", application()).write("version", "version one\n");
        repo.write("larder.yml", &recipe).commit("version one");
        let faults = world.directory().join("faults");
        fs::write(&faults, "").unwrap();
        let shop = Shop { world, repo, recipe, database, faults, acknowledged: Vec::new() };
        world.restart(&[("FAILPOINTS", &shop.failpoints())]);
        shop.repo.push().accepted();
        world.larder(&["run", "shop", "--", "python3", "app.py", "create"]).ok();
        shop.change_by_hand();
        Some(shop)
    }

    /// Adds a file to the tree of a release that runs in place.
    fn change_by_hand(&self) {
        if self.recipe.contains("in-place") {
            self.world.larder(&["run", "shop", "--", "sh", "-c", "echo handmade > handmade"]).ok();
        }
    }

    fn failpoints(&self) -> String {
        format!("listed=return({})", self.faults.display())
    }

    fn everything(&self) -> Everything {
        let written = |path: &PathBuf| ["uploads/beats", "uploads/numbers"].iter().any(|name| path.ends_with(name));
        let mut found = files(self.world);
        // The time of the directory changes when the application creates its files.
        found.retain(|path, _| !written(path) && !path.ends_with("uploads"));
        let tree = crate::backup::walk(&self.world.environment("shop").join("slots/in-place/upper"));
        let tree = tree.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect();
        Everything { rows: self.database.content(), files: found, tree }
    }

    /// Asserts that no acknowledged write is lost.
    #[track_caller]
    fn keeps_every_write(&self, about: &str) {
        let read = |path: &str| lines(&fs::read_to_string(data(self.world).join(path)).unwrap_or_default());
        let log = fs::read_to_string(self.world.environment("shop").join("log/worker.1.log")).unwrap();
        let numbers: Vec<_> = log.lines().filter_map(|line| Some(line.split_once("wrote ")?.1.to_owned())).collect();
        assert!(!numbers.is_empty(), "{about}: {log}");
        let (rows, ledger, written) = (self.database.ledger(), read("uploads/ledger"), read("uploads/numbers"));
        for (place, kept, expected) in [
            ("the database", &rows, &self.acknowledged),
            ("the files", &ledger, &self.acknowledged),
            ("the file of the worker", &written, &numbers),
        ] {
            let lost: Vec<_> = expected.iter().filter(|line| !kept.contains(*line)).collect();
            let (count, all) = (lost.len(), expected.len());
            assert!(lost.is_empty(), "{about}: {count} of {all} acknowledged writes are lost in {place}: {lost:?}");
        }
    }

    /// While the environment is frozen, the old release answers, or larder's page.
    #[track_caller]
    fn answers_with_the_old_release(&self, about: &str) {
        let answer = self.world.get("shop", "/");
        let is_old = answer.status == 200 && answer.body.contains("version one");
        assert!(is_old || answer.status == 503, "{about}: {answer:?}");
    }

    /// Deploys a version whose undo fails, and unfreezes the environment. `upgrade` is a part of the recipe.
    fn fails_and_is_unfrozen(&mut self, case: &Case, upgrade: &str) {
        let (world, repo) = (self.world, &self.repo);
        let Case { fails, undo, is_killed } = case;
        let about = format!("{fails} fails, then the undo of {undo}, killed: {is_killed}");
        eprintln!("{about}");
        let (before, live) = (self.everything(), repo.live());
        // The new version brings the first content of a further path, which its upgrade changes.
        let recipe = self.recipe.replace("data: [", "data: [extra/, ");
        repo.write("larder.yml", format!("{recipe}{upgrade}")).write("version", "version two\n").write("extra/first", "first\n");
        repo.commit("version two");
        fs::write(&self.faults, format!("step.{fails}\nundo.{undo}\n")).unwrap();
        let writer = Writer::start(world, &format!("{undo}-{is_killed}"));
        writer.goes_on();
        repo.push().rejected_with("is frozen");
        fs::write(&self.faults, "").unwrap();
        self.answers_with_the_old_release(&about);
        world.larder(&["backup", "list", "shop"]).ok();
        let mut acknowledged = writer.stop();
        if *is_killed {
            world.kill9_everything();
            world.start(&[("FAILPOINTS", &self.failpoints())]);
            self.answers_with_the_old_release(&about);
        }
        let writer = Writer::start(world, &format!("{undo}-{is_killed}-frozen"));
        world.larder(&["deploy", "shop", "--unfreeze"]).ok();
        until("the old release serves", || world.get("shop", "/").status == 200);
        world.serves("shop", "version one");
        writer.goes_on();
        acknowledged.extend(writer.stop());
        self.acknowledged.extend(acknowledged);
        assert_eq!(repo.live(), live, "{about}");
        assert_eq!(self.everything(), before, "{about}");
        if fails.starts_with("deploy.") {
            let beats = lines(&fs::read_to_string(data(world).join("uploads/beats")).unwrap());
            assert_eq!(beats.iter().map(String::as_str).collect::<Vec<_>>(), ["version one"], "{about}");
        }
        self.keeps_every_write(&about);
        world.larder(&["backup", "take", "shop"]).ok();
        world.is_consistent("shop");
        assert!(names(&data(world)).iter().all(|name| name != "extra"), "{about}");
        // The next push works.
        repo.remove("extra/first").write("larder.yml", &self.recipe).write("version", "version one\n");
        repo.write("about", &about).commit("version one again");
        repo.push().accepted();
        world.serves("shop", "version one");
        self.change_by_hand();
    }

    /// Lets the undos of `few` fail, or with `LARDER_TEST_THOROUGH` the undos of all steps up to the switch.
    fn undos_fail_before_the_commit_point(&mut self, few: &[(&str, bool)]) {
        let mut cases: Vec<_> = few.iter().map(|(undo, is_killed)| ((*undo).to_owned(), *is_killed)).collect();
        if thorough() {
            let steps = self.world.steps("shop");
            let end = steps.iter().position(|step| step == "deploy.switch").unwrap();
            let undos = steps.iter().take(end + 1).flat_map(|step| [step.clone(), format!("{step}.late")]);
            cases = undos.flat_map(|undo| [(undo.clone(), false), (undo, true)]).collect();
        }
        let count = cases.len();
        for (undo, is_killed) in cases {
            let case = Case { fails: String::from("deploy.switch.late"), undo, is_killed };
            let change = "python3 app.py upgrade && echo changed > extra/first && echo second > extra/second";
            self.fails_and_is_unfrozen(&case, &format!("upgrade: {{run: '{change}', safety: hold}}\n"));
        }
        eprintln!("{count} undos failed and were repeated");
    }
}

fn upgrade_with_a_hold_whose_undo_fails_is_unfrozen(world: &World) {
    if let Some(mut shop) = Shop::new(world, "") {
        shop.undos_fail_before_the_commit_point(&[
            ("deploy.boot", false),
            ("deploy.quiesce", false),
            ("deploy.quiesce.late", true),
        ]);
    }
}

fn deployment_in_place_whose_undo_fails_is_unfrozen(world: &World) {
    if let Some(mut shop) = Shop::new(world, "strategy: in-place\n") {
        shop.undos_fail_before_the_commit_point(&[("deploy.archive", true), ("deploy.stop.late", false)]);
    }
}

/// Visitors have used the new release, so the data is not restored. Its upgrade changes no data.
fn undo_that_fails_after_the_commit_point_is_unfrozen(world: &World) {
    for strategy in ["", "strategy: in-place\n"].into_iter().skip(usize::from(!thorough())) {
        let Some(mut shop) = Shop::new(world, strategy) else { return };
        let steps = world.steps("shop");
        let first = steps.iter().position(|step| step == "deploy.install").unwrap();
        let undos = steps.iter().skip(first).flat_map(|step| [step.clone(), format!("{step}.late")]);
        let cases = undos.flat_map(|undo| [(undo.clone(), false), (undo, true)]);
        for (undo, is_killed) in cases.take(if thorough() { usize::MAX } else { 1 }).collect::<Vec<_>>() {
            let case = Case { fails: String::from("post_install.alive.late"), undo, is_killed };
            shop.fails_and_is_unfrozen(&case, "upgrade: {run: 'true', safety: hold}\n");
        }
        world.larder(&["project", "destroy", "shop", "--confirm", "shop"]).ok();
    }
}
