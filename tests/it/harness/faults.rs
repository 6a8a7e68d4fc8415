//! What every way to deploy has to survive, whatever its steps are: each of them fails once, and is as if it had never been tried.

use super::{Repo, World, cli::Output, state::Snapshot};

/// The failpoints before and after the work of each step, in the order in which a deployment meets them.
pub fn around(steps: &[String]) -> Vec<String> {
    steps.iter().flat_map(|step| [format!("step.{step}"), format!("step.{step}.late")]).collect()
}

/// `FAILPOINTS` with which each of these fires once.
pub fn once(points: &[String]) -> String {
    points.iter().map(|point| format!("{point}=1*return")).collect::<Vec<_>>().join(";")
}

/// Something that makes another release live, to be tried again and again.
pub struct Attempt<'a, 'w> {
    pub world: &'w World,
    pub repo: &'a Repo<'w>,
    /// Asks for it, and follows it to its end.
    pub ask: &'a dyn Fn() -> Output,
    /// The page that serves until it works.
    pub old: &'a str,
    /// The page that serves afterwards.
    pub new: &'a str,
    /// Files in `releases/` that may stay from attempts that failed: a release that came whole, was believed, and need not come again.
    pub stays: &'a dyn Fn(&str) -> bool,
}

impl Attempt<'_, '_> {
    /// Fails before and after each of these steps, one attempt after the other, and changes nothing; then it works.
    pub fn fails_once_at_each(&self, steps: &[String]) {
        let points = around(steps);
        self.world.restart(&[("FAILPOINTS", &once(&points))]);
        self.world.serves("shop", self.old);
        let (before, live) = (self.state(), self.repo.live());
        let visitor = self.world.visitor("shop");
        for point in &points {
            (self.ask)().exits(1).says("told to fail").says("is still live");
            assert_eq!(self.state(), before, "{point} left something behind");
            assert_eq!(self.repo.live(), live, "{point}");
            self.world.serves("shop", self.old);
        }
        (self.ask)().ok();
        self.world.serves("shop", self.new);
        assert_ne!(self.repo.live(), live);
        // What fails after the switch shows the new version for a moment; nothing else may, and everything is answered.
        let flickers = visitor.satisfied().pages.len();
        assert!(flickers <= 2 * steps.len(), "{flickers} changes of the page");
        self.world.is_consistent("shop");
    }

    fn state(&self) -> Snapshot {
        let mut found = self.world.snapshot("shop");
        found.files.retain(|name, _| !name.strip_prefix("releases/").is_some_and(self.stays));
        found
    }
}
