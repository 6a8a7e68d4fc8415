//! Fault injection for every way to deploy: each step fails once, and the attempt leaves no trace.

use super::{
    Repo, World,
    cli::Output,
    output::{golden, golden_lines},
    state::Snapshot,
    thorough,
};

/// Returns the failpoints before and after the work of each step, in the order of a deployment.
pub fn around(steps: &[String]) -> Vec<String> {
    steps.iter().flat_map(|step| [format!("step.{step}"), format!("step.{step}.late")]).collect()
}

/// Returns the failpoints that a test in both modes uses: all of them in system mode, and every third of them in rootless mode. With
/// `LARDER_TEST_THOROUGH`, returns all of them.
pub fn chosen(world: &World, points: Vec<String>) -> Vec<String> {
    let step = if world.is_second_mode() && !thorough() { 3 } else { 1 };
    points.into_iter().step_by(step).collect()
}

/// Returns the value of `FAILPOINTS` with which each of these failpoints fires once.
pub fn once(points: &[String]) -> String {
    points.iter().map(|point| format!("{point}=1*return")).collect::<Vec<_>>().join(";")
}

/// Returns the step that failed in the last deployment, and the reverted steps in the order of their undos.
pub fn unwind(world: &World) -> String {
    let journals = world.journals("shop");
    let of = |word: &str| {
        let events = journals.last().unwrap().iter().filter(|record| record["event"] == word);
        events.map(|record| record["step"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    format!("{}: {}\n", of("failed").join(" "), of("undo_finished").join(" "))
}

/// Compares the unwinds of all chosen failpoints with a part of the golden file.
#[track_caller]
pub fn compare(world: &World, title: &str, unwinds: &str) {
    if world.is_second_mode() && !thorough() { golden_lines(title, unwinds) } else { golden(title, unwinds) }
}

/// A repeatable way to make a new release live.
pub struct Attempt<'a, 'w> {
    pub world: &'w World,
    pub repo: &'a Repo<'w>,
    /// Starts the deployment and follows it to its end.
    pub ask: &'a dyn Fn() -> Output,
    /// The page that serves before the deployment succeeds.
    pub old: &'a str,
    /// The page that serves after the deployment succeeded.
    pub new: &'a str,
    /// The predicate for the names in `releases/` that a failed attempt may leave: the files of a completely transferred and accepted release.
    pub stays: &'a dyn Fn(&str) -> bool,
}

impl Attempt<'_, '_> {
    /// Makes one attempt for each chosen failpoint before and after these steps, and asserts that the failure changes nothing. Then asserts that an
    /// attempt without a failure succeeds. Returns the failed step and the reverted steps of each failed attempt, for a golden file.
    pub fn fails_once_at_each(&self, steps: &[String]) -> String {
        let points = chosen(self.world, around(steps));
        self.world.restart(&[("FAILPOINTS", &once(&points))]);
        self.world.serves("shop", self.old);
        let (before, live) = (self.state(), self.repo.live());
        let visitor = self.world.visitor("shop");
        let mut unwinds = String::new();
        for point in &points {
            (self.ask)().exits(1).says("stopped by a failpoint").says("is still live");
            assert_eq!(self.state(), before, "{point} left something behind");
            assert_eq!(self.repo.live(), live, "{point}");
            self.world.serves("shop", self.old);
            unwinds.push_str(&unwind(self.world));
        }
        (self.ask)().ok();
        self.world.serves("shop", self.new);
        assert_ne!(self.repo.live(), live);
        // If a step fails after the switch, visitors see the new version for a moment. If a step fails before the switch, visitors do not
        // see the new version. In both cases, every request is answered.
        let flickers = visitor.satisfied().pages.len();
        assert!(flickers <= 2 * steps.len(), "{flickers} changes of the page");
        self.world.is_consistent("shop");
        unwinds
    }

    fn state(&self) -> Snapshot {
        let mut found = self.world.snapshot("shop");
        found.files.retain(|name, _| !name.strip_prefix("releases/").is_some_and(self.stays));
        found
    }
}
