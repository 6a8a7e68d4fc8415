//! Protected environments: release freezes, deploy windows, and approvals by a second person.
//!
//! A *release freeze* is set by a person, and has an end and a reason. It has nothing to do with a *frozen* environment, whose last
//! deployment could be neither finished nor reverted.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::{
    SignedDuration, Timestamp, ToSpan as _,
    civil::{Time, Weekday},
    tz::TimeZone,
};
use serde::{Deserialize, Serialize};

use crate::model::{CommitId, Environment, Target, Trigger, UserName};

/// The maximum number of approvals that are kept for an environment. The oldest approval is dropped first.
const MAX_APPROVALS: usize = 64;

/// The time for which an approval counts.
const APPROVAL_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The time for which an override counts.
const OVERRIDE_LIFE: SignedDuration = SignedDuration::from_hours(24);

/// The protection of a project or an environment against deployments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The release freeze.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<ReleaseFreeze>,
    /// True if each deployment needs the approval of a second person.
    #[serde(default)]
    pub approval: bool,
    /// The times at which deployments may begin; at any time if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<DeployWindow>,
    /// The approvals and overrides, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
}

/// A time without deployments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseFreeze {
    /// The end; absent if a person must end the release freeze.
    pub until: Option<Timestamp>,
    /// The reason, for the pusher.
    pub why: String,
    /// The user who has set the release freeze.
    pub by: UserName,
}

/// The permission of a person to deploy a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The commit.
    pub commit: CommitId,
    /// The user who has given the permission.
    pub by: UserName,
    /// The moment of the permission.
    pub at: Timestamp,
    /// The reason for which the commit may be deployed in spite of every protection; absent for an approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overriding: Option<String>,
}

/// Days of the week, with a time of the day, at which deployments may begin, such as `Mon-Fri 09:00-17:00`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeployWindow {
    first: Weekday,
    last: Weekday,
    from: Time,
    to: Time,
}

/// The reason why a deployment may not begin, for the person who requested it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// The reason, which fits git's own line.
    pub reason: String,
    /// The remedy, as an imperative.
    pub hint: String,
    /// True if the approval of a second person is the remedy.
    pub wants_approval: bool,
}

/// Returns the reason why `trigger` may not deploy `commit` to `environment` now, if there is one. A rollback is always permitted, because
/// it returns to a release that was permitted before.
pub(super) fn objection(
    protections: &BTreeMap<Target, Protection>,
    environment: &Environment,
    commit: &CommitId,
    trigger: &Trigger,
    (now, zone): (Timestamp, &TimeZone),
) -> Option<Objection> {
    if matches!(trigger, Trigger::Rollback { .. }) {
        return None;
    }
    let whole = Target { project: environment.project.clone(), environment: None };
    let own = Target::from(environment);
    let title = environment.title();
    let counting: Vec<&Protection> = [&whole, &own].into_iter().filter_map(|target| protections.get(target)).collect();
    let given: Vec<_> =
        counting.iter().flat_map(|protection| &protection.approvals).filter(|given| given.commit == *commit).collect();
    let fresh = |given: &&&Approval, life: SignedDuration| now.duration_since(given.at) < life;
    if given.iter().any(|given| given.overriding.is_some() && fresh(&given, OVERRIDE_LIFE)) {
        return None;
    }
    let overriding = format!("in an emergency, ask an administrator to run `larder approve {title} {commit} --override WHY`");
    if let Some(freeze) = freeze(protections, environment, now) {
        let end = freeze.until.map(|until| format!(" until {}", shown(until, zone))).unwrap_or_default();
        let reason = format!("{title} has a release freeze{end}: {} ({})", freeze.why, freeze.by);
        return Some(Objection { reason, hint: overriding, wants_approval: false });
    }
    let windows: Vec<_> = counting.iter().flat_map(|protection| &protection.windows).collect();
    if !windows.is_empty() && !windows.iter().any(|window| window.contains(now, zone)) {
        let times: Vec<_> = windows.iter().map(|window| window.to_string()).collect();
        let name = zone.iana_name().unwrap_or("UTC");
        let reason = format!("{title} is deployed only at {} ({name})", times.join(", "));
        return Some(Objection { reason, hint: overriding, wants_approval: false });
    }
    // An approval concerns a commit, and a change of the configuration deploys no other commit.
    let wanted = counting.iter().any(|protection| protection.approval)
        && !matches!(trigger, Trigger::Configure { .. } | Trigger::Pillar { .. });
    let approved = |given: &&&Approval| given.overriding.is_none() && given.by != *trigger.by() && fresh(given, APPROVAL_LIFE);
    if wanted && !given.iter().any(|given| approved(&given)) {
        let reason = format!("{title} wants the approval of {} by a second person", commit.short());
        let hint = format!("ask another person to run `larder approve {title} {commit}`, and repeat the command then");
        return Some(Objection { reason, hint, wants_approval: true });
    }
    None
}

/// Returns the release freeze that concerns an environment now: the freeze of its project, or else its own.
pub(super) fn freeze<'a>(
    protections: &'a BTreeMap<Target, Protection>,
    environment: &Environment,
    now: Timestamp,
) -> Option<&'a ReleaseFreeze> {
    let whole = Target { project: environment.project.clone(), environment: None };
    let counting = [whole, Target::from(environment)];
    let freezes = counting.iter().filter_map(|target| protections.get(target)?.freeze.as_ref());
    freezes.into_iter().find(|freeze| freeze.until.is_none_or(|until| until > now))
}

impl Protection {
    /// Adds an approval, and drops approvals that no longer count.
    pub(super) fn approve(&mut self, approval: Approval) {
        self.approvals.retain(|known| approval.at.duration_since(known.at) < APPROVAL_LIFE);
        self.approvals.push(approval);
        let excess = self.approvals.len().saturating_sub(MAX_APPROVALS);
        self.approvals.drain(..excess);
    }
}

/// Returns a moment as people of the server's time zone write it.
pub(super) fn shown(moment: Timestamp, zone: &TimeZone) -> String {
    moment.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M %Z").to_string()
}

impl DeployWindow {
    fn contains(&self, moment: Timestamp, zone: &TimeZone) -> bool {
        let local = moment.to_zoned(zone.clone());
        let day = |day: Weekday| day.to_monday_zero_offset();
        let (first, last, today) = (day(self.first), day(self.last), day(local.weekday()));
        // `Sat-Mon` contains the days from Saturday over the end of the week to Monday.
        let in_days = if first <= last { (first..=last).contains(&today) } else { today >= first || today <= last };
        in_days && local.time() >= self.from && local.time() < self.to
    }
}

/// The reason why a text is not a moment or a deploy window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// The text has none of the accepted forms.
    #[error(
        "{0:?} is not a time (expected for example `Mon 8:00`, 18:00, 12h, 3d, 2026-12-24, `2026-12-24 18:00` or 2026-12-24T18:00:00Z)"
    )]
    Moment(String),
    /// The moment is not in the future.
    #[error("{0:?} is in the past")]
    Past(String),
    /// The text is not a deploy window.
    #[error("{0:?} is not a deploy window (expected days and times such as `Mon-Fri 09:00-17:00` or `Tue 10:00-12:00`)")]
    Window(String),
}

fn weekday(text: &str) -> Option<Weekday> {
    Some(match text.to_ascii_lowercase().as_str() {
        "mon" | "monday" => Weekday::Monday,
        "tue" | "tuesday" => Weekday::Tuesday,
        "wed" | "wednesday" => Weekday::Wednesday,
        "thu" | "thursday" => Weekday::Thursday,
        "fri" | "friday" => Weekday::Friday,
        "sat" | "saturday" => Weekday::Saturday,
        "sun" | "sunday" => Weekday::Sunday,
        _ => return None,
    })
}

fn name_of(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "Mon",
        Weekday::Tuesday => "Tue",
        Weekday::Wednesday => "Wed",
        Weekday::Thursday => "Thu",
        Weekday::Friday => "Fri",
        Weekday::Saturday => "Sat",
        Weekday::Sunday => "Sun",
    }
}

/// Parses `8:00` or `18:30`.
fn time_of_day(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |text: &str| text.len() <= 2 && text.bytes().all(|digit| digit.is_ascii_digit());
    if !digits(hour) || minute.len() != 2 || !digits(minute) {
        return None;
    }
    Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
}

/// Parses a moment in the future. Times without a zone are in `zone`; a day without a time means the end of this day.
pub(super) fn moment(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, WhenError> {
    let found = parsed(text.trim(), now, zone).ok_or_else(|| WhenError::Moment(text.chars().take(60).collect()))?;
    if found > now { Ok(found) } else { Err(WhenError::Past(text.chars().take(60).collect())) }
}

fn parsed(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let local = now.to_zoned(zone.clone());
    let unit = text.chars().last().and_then(|unit| match unit {
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        'w' => Some(7 * 86_400),
        _ => None,
    });
    if let Some((unit, digits)) = unit.zip(text.get(..text.len().saturating_sub(1)))
        && let Ok(count) = digits.parse::<u32>()
    {
        return now.checked_add(SignedDuration::from_secs(i64::from(count).checked_mul(unit)?)).ok();
    }
    let at = |day: jiff::civil::Date, time: Time| Some(day.to_datetime(time).to_zoned(zone.clone()).ok()?.timestamp());
    let day = |text: &str| text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == "2026-12-24".len());
    match text.split_once(' ') {
        Some((first, time)) => {
            let time = time_of_day(time)?;
            if let Some(date) = day(first) {
                return at(date, time);
            }
            let weekday = weekday(first)?;
            let days = i64::from(weekday.to_monday_zero_offset()) - i64::from(local.weekday().to_monday_zero_offset());
            let today = at(local.date().checked_add(days.rem_euclid(7).days()).ok()?, time)?;
            match today > now {
                true => Some(today),
                false => at(local.date().checked_add((days.rem_euclid(7) + 7).days()).ok()?, time),
            }
        }
        None => {
            if let Some(time) = time_of_day(text) {
                let today = at(local.date(), time)?;
                return if today > now { Some(today) } else { at(local.date().tomorrow().ok()?, time) };
            }
            if let Some(date) = day(text) {
                return at(date.tomorrow().ok()?, Time::midnight());
            }
            text.parse().ok()
        }
    }
}

impl FromStr for DeployWindow {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<DeployWindow, WhenError> {
        let wrong = || WhenError::Window(text.chars().take(60).collect());
        let (days, times) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let (first, last) = days.split_once('-').unwrap_or((days, days));
        let (from, to) = times.trim().split_once('-').ok_or_else(wrong)?;
        let end = if to == "24:00" { Some(Time::MAX) } else { time_of_day(to) };
        let window = DeployWindow {
            first: weekday(first).ok_or_else(wrong)?,
            last: weekday(last).ok_or_else(wrong)?,
            from: time_of_day(from).ok_or_else(wrong)?,
            to: end.ok_or_else(wrong)?,
        };
        if window.from < window.to { Ok(window) } else { Err(wrong()) }
    }
}

impl fmt::Display for DeployWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(self.first))?;
        if self.first != self.last {
            write!(f, "-{}", name_of(self.last))?;
        }
        let to = if self.to == Time::MAX { String::from("24:00") } else { self.to.strftime("%H:%M").to_string() };
        write!(f, " {}-{to}", self.from.strftime("%H:%M"))
    }
}

crate::model::text_form!(DeployWindow, WhenError);

#[cfg(test)]
mod tests {
    use super::*;

    /// A Wednesday.
    fn now() -> Timestamp {
        "2026-12-02T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn moments_are_parsed_in_the_zone_of_the_server() {
        let utc = |text: &str| moment(text, now(), &TimeZone::UTC).map(|moment| moment.to_string());
        for (text, expected) in [
            ("Mon 8:00", "2026-12-07T08:00:00Z"),
            ("monday 08:00", "2026-12-07T08:00:00Z"),
            ("Wed 13:00", "2026-12-02T13:00:00Z"),
            ("Wed 11:00", "2026-12-09T11:00:00Z"),
            ("18:00", "2026-12-02T18:00:00Z"),
            ("8:00", "2026-12-03T08:00:00Z"),
            ("90m", "2026-12-02T13:30:00Z"),
            ("12h", "2026-12-03T00:00:00Z"),
            ("3d", "2026-12-05T12:00:00Z"),
            ("2w", "2026-12-16T12:00:00Z"),
            ("2026-12-24", "2026-12-25T00:00:00Z"),
            ("2026-12-24 18:00", "2026-12-24T18:00:00Z"),
            ("2026-12-24T18:00:00Z", "2026-12-24T18:00:00Z"),
        ] {
            assert_eq!(utc(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["", "Mon", "soon", "25:00", "8", "-3d", "3y", "2026-13-01", "Mon 8:00 9:00", "99999999999999999999w"] {
            assert!(matches!(utc(bad), Err(WhenError::Moment(_))), "{bad}: {:?}", utc(bad));
        }
        assert!(matches!(utc("2026-12-01"), Err(WhenError::Past(_))));
        assert!(matches!(utc("0h"), Err(WhenError::Past(_))));
        let east = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(moment("18:00", now(), &east).unwrap().to_string(), "2026-12-02T17:00:00Z");
    }

    #[test]
    fn deploy_window_contains_its_days_and_times_only() {
        let inside =
            |window: &str, at: &str| window.parse::<DeployWindow>().unwrap().contains(at.parse().unwrap(), &TimeZone::UTC);
        assert!(inside("Mon-Fri 09:00-17:00", "2026-12-02T09:00:00Z") && inside("Wed 0:00-24:00", "2026-12-02T23:59:59Z"));
        assert!(!inside("Mon-Fri 09:00-17:00", "2026-12-02T17:00:00Z") && !inside("Mon-Fri 09:00-17:00", "2026-12-05T10:00:00Z"));
        assert!(inside("Sat-Mon 09:00-17:00", "2026-12-06T10:00:00Z") && !inside("Sat-Mon 09:00-17:00", "2026-12-02T10:00:00Z"));
        assert_eq!("mon-friday 9:00-24:00".parse::<DeployWindow>().unwrap().to_string(), "Mon-Fri 09:00-24:00");
        for bad in
            ["", "Mon", "Mon 9-17", "Mon 17:00-09:00", "Mon 09:00-09:00", "Day 09:00-17:00", "09:00-17:00", "Mon-Fri 09:00-25:00"]
        {
            assert!(bad.parse::<DeployWindow>().is_err(), "{bad}");
        }
    }

    fn commit(digit: &str) -> CommitId {
        digit.repeat(40).parse().unwrap()
    }

    fn push(by: &str) -> Trigger {
        Trigger::Push { by: by.parse().unwrap() }
    }

    fn check(protection: &Protection, commit: &CommitId, trigger: &Trigger) -> Option<String> {
        let protections = [("shop/production".parse().unwrap(), protection.clone())].into();
        let environment = Environment::of_shop("production", "main");
        let other = Environment::of_shop("staging", "next");
        assert_eq!(objection(&protections, &other, commit, trigger, (now(), &TimeZone::UTC)), None);
        objection(&protections, &environment, commit, trigger, (now(), &TimeZone::UTC)).map(|objection| objection.reason)
    }

    fn approval(digit: &str, by: &str, at: &str, overriding: Option<&str>) -> Approval {
        let overriding = overriding.map(str::to_owned);
        Approval { commit: commit(digit), by: by.parse().unwrap(), at: at.parse().unwrap(), overriding }
    }

    #[test]
    fn release_freeze_refuses_until_its_end_unless_overridden() {
        let freeze = |until: Option<&str>| Protection {
            freeze: Some(ReleaseFreeze {
                until: until.map(|until| until.parse().unwrap()),
                why: String::from("Christmas"),
                by: "ann".parse().unwrap(),
            }),
            ..Protection::default()
        };
        let until = freeze(Some("2026-12-07T08:00:00Z"));
        assert_eq!(
            check(&until, &commit("a"), &push("bob")).unwrap(),
            "shop/production has a release freeze until Mon 2026-12-07 08:00 UTC: Christmas (ann)"
        );
        assert!(check(&freeze(None), &commit("a"), &push("bob")).unwrap().contains("has a release freeze: Christmas"));
        assert_eq!(check(&freeze(Some("2026-12-02T12:00:00Z")), &commit("a"), &push("bob")), None);
        assert_eq!(check(&until, &commit("a"), &Trigger::Rollback { by: "bob".parse().unwrap() }), None);
        let mut overridden = until;
        overridden.approve(approval("b", "ann", "2026-12-02T11:00:00Z", Some("hotfix")));
        overridden.approve(approval("c", "ann", "2026-12-02T11:00:00Z", None));
        assert_eq!(check(&overridden, &commit("b"), &push("bob")), None);
        assert!(check(&overridden, &commit("a"), &push("bob")).is_some(), "an override counts for its commit only");
        assert!(check(&overridden, &commit("c"), &push("bob")).is_some(), "an approval is no override");
        overridden.approvals[0].at = "2026-12-01T11:00:00Z".parse().unwrap();
        assert!(check(&overridden, &commit("b"), &push("bob")).is_some(), "an override counts for a day");
    }

    #[test]
    fn approval_is_by_a_second_person_and_for_one_commit() {
        let mut wanted = Protection { approval: true, ..Protection::default() };
        assert!(check(&wanted, &commit("a"), &push("bob")).unwrap().contains("wants the approval of aaaaaaa"));
        wanted.approve(approval("a", "bob", "2026-12-02T11:00:00Z", None));
        assert!(check(&wanted, &commit("a"), &push("bob")).is_some(), "the approval of the pusher counted");
        assert_eq!(check(&wanted, &commit("a"), &push("ann")), None);
        wanted.approve(approval("a", "ann", "2026-12-02T11:00:00Z", None));
        assert_eq!(check(&wanted, &commit("a"), &push("bob")), None);
        assert!(check(&wanted, &commit("b"), &push("bob")).is_some());
        wanted.approvals[1].at = "2026-11-20T11:00:00Z".parse().unwrap();
        assert!(check(&wanted, &commit("a"), &push("bob")).is_some(), "an approval counts for a week");
        for number in 0..1000_u32 {
            let digits = format!("{number:040x}");
            wanted.approve(Approval { commit: digits.parse().unwrap(), ..approval("a", "ann", "2026-12-02T11:30:00Z", None) });
        }
        assert_eq!(wanted.approvals.len(), MAX_APPROVALS);
    }

    #[test]
    fn deployment_outside_of_the_window_is_refused() {
        let window = |text: &str| Protection { windows: vec![text.parse().unwrap()], ..Protection::default() };
        assert_eq!(check(&window("Mon-Fri 09:00-17:00"), &commit("a"), &push("bob")), None);
        let refused = check(&window("Sat 09:00-17:00"), &commit("a"), &push("bob")).unwrap();
        assert_eq!(refused, "shop/production is deployed only at Sat 09:00-17:00 (UTC)");
    }
}
