//! The queue of messages on the disk: one file for each message, which stays for some weeks after the delivery. The files are also the
//! memory of the events that were queued, so an event that is announced twice is queued once, and they are the log of the deliveries.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::message::{Lane, MessageContent, MessageRecord, MessageState, StoredMessage, VERSION};
use crate::{
    host::files::{self, FileError},
    model::{NotificationFamily, ProjectName},
};

/// The maximum size of a file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The maximum number of waiting messages of one project.
const MAX_WAITING: usize = 500;
/// The maximum number of messages of one project whose delivery has ended.
const MAX_ENDED: usize = 1000;
/// The time after which a message whose delivery has ended is removed. A repeated announcement of an event arrives within a week.
const KEEP: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The maximum number of earlier messages that a message refers to, besides the first message of the thread.
const MAX_REFERENCES: usize = 10;

/// The reason why a message cannot be queued.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    #[error("{0} messages of this project wait for their delivery (the limit)")]
    Full(usize),
    #[error(transparent)]
    File(#[from] FileError),
}

/// All messages of this server.
#[derive(Debug)]
pub(super) struct MessageQueue {
    directory: PathBuf,
    table: Mutex<MessageTable>,
}

#[derive(Debug, Default)]
struct MessageTable {
    /// The messages by number. A later message has a higher number.
    messages: BTreeMap<u64, MessageRecord>,
    keys: HashSet<String>,
}

impl MessageQueue {
    /// Reads all messages below `directory`, which is created if it does not exist.
    pub fn open(directory: PathBuf) -> io::Result<MessageQueue> {
        files::ensure_dir(&directory, 0o700)?;
        files::remove_unfinished(&directory).map_err(io::Error::other)?;
        let mut table = MessageTable::default();
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok()) else { continue };
            match read(&entry.path()) {
                Ok(message) => {
                    table.keys.insert(message.record.key());
                    table.messages.insert(number, message.record);
                }
                // The file stays for a person, or for the newer version of larder that wrote it.
                Err(why) => tracing::error!(path = %entry.path().display(), why, "cannot read a queued message; it is not sent"),
            }
        }
        Ok(MessageQueue { directory, table: Mutex::new(table) })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:012}.json"))
    }

    /// Adds a message durably, and sets its references to the open thread of its environment and recipient. Returns `None` if a message with
    /// the same key was added before, or if the recipient needs no message.
    pub fn add(&self, mut record: MessageRecord, content: MessageContent) -> Result<Option<u64>, QueueError> {
        // The lock is held during the write, so that the files are written in the order of their numbers.
        let mut table = self.table.lock();
        if table.keys.contains(&record.key()) {
            return Ok(None);
        }
        let of_project = table.messages.values().filter(|other| other.project == record.project);
        let waiting = of_project.filter(|other| other.state == MessageState::Waiting).count();
        if waiting >= MAX_WAITING {
            return Err(QueueError::Full(waiting));
        }
        let thread = table.thread(&record);
        // The end of a problem is news only for a recipient who was told of the problem, and some problems are told once.
        if (record.kind.ends_problem() && thread.is_empty()) || (record.kind.is_told_once() && !thread.is_empty()) {
            return Ok(None);
        }
        record.references = thread;
        let last = table.messages.last_key_value().map_or(0, |(number, _)| *number);
        let number = self.after_unreadable(last.saturating_add(1));
        self.write(number, &record, Some(content))?;
        table.keys.insert(record.key());
        table.messages.insert(number, record);
        self.prune(&mut table, number);
        Ok(Some(number))
    }

    /// Returns the first number from `number` on that no file has. Only files that cannot be read have a number that is not in the table.
    fn after_unreadable(&self, mut number: u64) -> u64 {
        while self.path(number).exists() {
            number = number.saturating_add(1);
        }
        number
    }

    fn write(&self, number: u64, record: &MessageRecord, content: Option<MessageContent>) -> Result<(), FileError> {
        let message = StoredMessage { version: VERSION, record: record.clone(), content };
        let mut bytes = serde_json::to_vec_pretty(&message).unwrap_or_default();
        bytes.push(b'\n');
        files::write_atomic(&self.path(number), &bytes, 0o600)
    }

    /// Removes old messages of the project of message `number` whose delivery has ended.
    fn prune(&self, table: &mut MessageTable, number: u64) {
        let Some(project) = table.messages.get(&number).map(|record| record.project.clone()) else { return };
        let ended: Vec<_> = table
            .messages
            .iter()
            .filter(|(_, record)| record.project == project && record.state != MessageState::Waiting)
            .map(|(number, record)| (*number, record.ended))
            .collect();
        let spare = ended.len().saturating_sub(MAX_ENDED);
        let now = Timestamp::now();
        for (at, (number, end)) in ended.into_iter().enumerate() {
            if at >= spare && end.is_none_or(|end| now.duration_since(end) < KEEP) {
                continue;
            }
            // Without the key, a repeated announcement of this event would be queued again. Therefore the file goes first.
            if files::remove_if_present(&self.path(number)).is_ok()
                && let Some(record) = table.messages.remove(&number)
            {
                table.keys.remove(&record.key());
            }
        }
    }

    /// Reads a message with its content.
    pub fn message(&self, number: u64) -> Result<StoredMessage, String> {
        read(&self.path(number))
    }

    /// Returns the record of a message.
    pub fn record(&self, number: u64) -> Option<MessageRecord> {
        self.table.lock().messages.get(&number).cloned()
    }

    /// Changes the record of a message durably. The content is removed after the delivery. If the change cannot be written, the change is
    /// known to this server only, and the next server repeats the delivery.
    pub fn change(&self, number: u64, change: impl FnOnce(&mut MessageRecord)) {
        let mut table = self.table.lock();
        let Some(record) = table.messages.get_mut(&number) else { return };
        change(record);
        let record = record.clone();
        let content = match record.state {
            MessageState::Delivered => None,
            MessageState::Waiting | MessageState::Failed => match read(&self.path(number)) {
                Ok(message) => message.content,
                Err(why) => return tracing::error!(number, why, "cannot read a queued message"),
            },
        };
        if let Err(error) = self.write(number, &record, content) {
            tracing::error!(number, %error, "cannot record the delivery of a message");
        }
    }

    /// Returns the messages whose time has come, at most one for each lane that is not in `busy`, and the time of the next attempt in the
    /// other lanes. The message that has waited longest is first, so that no lane waits for the repeated attempts of another lane. A message that
    /// waits for its next attempt holds back the later messages of its lane.
    pub fn due(&self, now: Timestamp, busy: &HashSet<Lane>) -> (Vec<(u64, Lane)>, Option<Timestamp>) {
        let (mut due, mut next, mut seen) = (Vec::new(), None, HashSet::new());
        for (number, record) in &self.table.lock().messages {
            if record.state != MessageState::Waiting {
                continue;
            }
            let lane = record.lane();
            if busy.contains(&lane) || !seen.insert(lane.clone()) {
                continue;
            }
            if record.next <= now {
                due.push((record.next, *number, lane));
            } else {
                next = Some(next.map_or(record.next, |next: Timestamp| next.min(record.next)));
            }
        }
        due.sort_by_key(|(since, number, _)| (*since, *number));
        (due.into_iter().map(|(_, number, lane)| (number, lane)).collect(), next)
    }

    /// Returns the messages of a project, or of the whole server, oldest first.
    pub fn of_project(&self, project: Option<&ProjectName>) -> Vec<(u64, MessageRecord)> {
        let table = self.table.lock();
        let of_project = table.messages.iter().filter(|(_, record)| record.project.as_ref() == project);
        of_project.map(|(number, record)| (*number, record.clone())).collect()
    }
}

impl MessageTable {
    /// Returns the references of a new message: the last message of the same family, environment and recipient, if this message is a
    /// problem, and its own references.
    fn thread(&self, new: &MessageRecord) -> Vec<String> {
        let is_related = |other: &&MessageRecord| {
            other.to == new.to
                && other.project == new.project
                && other.environment == new.environment
                && other.kind.family() == new.kind.family()
        };
        if new.kind.family() == NotificationFamily::Single {
            return Vec::new();
        }
        let Some(last) = self.messages.values().rev().find(is_related).filter(|last| last.kind.is_problem()) else {
            return Vec::new();
        };
        let mut references = last.references.clone();
        references.push(last.message_id.clone());
        if references.len() > MAX_REFERENCES + 1 {
            // The first reference is the beginning of the thread.
            references.drain(1..references.len() - MAX_REFERENCES);
        }
        references
    }
}

fn read(path: &Path) -> Result<StoredMessage, String> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let bytes = files::read_limited(path, MAX_FILE).map_err(|error| error.to_string())?;
    let Version { version } = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if version > VERSION {
        return Err(format!("its version is {version} (expected at most {VERSION})"));
    }
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::{
        super::message::{MailContent, testing::record},
        *,
    };
    use crate::model::NotificationKind;

    fn content() -> MessageContent {
        MessageContent::Mail(MailContent { text: String::from("text"), html: String::from("html") })
    }

    fn delivered(record: &mut MessageRecord) {
        record.state = MessageState::Delivered;
        record.ended = Some(Timestamp::now());
    }

    #[test]
    fn event_is_queued_once_also_after_its_delivery_and_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let queue = MessageQueue::open(path.clone()).unwrap();
        let first = queue.add(record("a", "x@example.com", NotificationKind::Deployed), content()).unwrap().unwrap();
        assert_eq!(queue.add(record("a", "x@example.com", NotificationKind::Deployed), content()).unwrap(), None);
        assert!(queue.add(record("a", "y@example.com", NotificationKind::Deployed), content()).unwrap().is_some());
        queue.change(first, delivered);
        // A temporary file of a killed server, a file of a newer version, and a damaged file.
        std::fs::write(path.join(".new-x"), "").unwrap();
        std::fs::write(path.join("000000000003.json"), "{\"version\": 2}").unwrap();
        std::fs::write(path.join("000000000004.json"), "{").unwrap();
        let queue = MessageQueue::open(path.clone()).unwrap();
        assert!(!path.join(".new-x").exists());
        assert_eq!(queue.add(record("a", "x@example.com", NotificationKind::Deployed), content()).unwrap(), None);
        assert_eq!(queue.message(first).unwrap().content, None, "the content of a delivered message is removed");
        let third = queue.add(record("b", "x@example.com", NotificationKind::Deployed), content()).unwrap().unwrap();
        assert_eq!(third, 5, "a file that cannot be read is not replaced");
    }

    #[test]
    fn run_that_is_repeated_after_a_kill_and_fails_is_not_hidden_by_its_first_end() {
        let directory = tempfile::tempdir().unwrap();
        let queue = MessageQueue::open(directory.path().join("notify")).unwrap();
        let add = |event: &str, kind| queue.add(record(event, "x@example.com", kind), content()).unwrap();
        assert!(add("run 1", NotificationKind::BackupFailed).is_some());
        assert!(add("run 2", NotificationKind::BackupSucceeded).is_some());
        assert!(add("run 2", NotificationKind::BackupFailed).is_some());
        assert_eq!(add("run 2", NotificationKind::BackupFailed), None);
    }

    #[test]
    fn message_that_waits_holds_back_its_lane_only() {
        let directory = tempfile::tempdir().unwrap();
        let queue = MessageQueue::open(directory.path().join("notify")).unwrap();
        let add = |event: &str, to: &str| queue.add(record(event, to, NotificationKind::Deployed), content()).unwrap().unwrap();
        let (first, _second, other) = (add("a", "x@example.com"), add("b", "x@example.com"), add("a", "y@example.com"));
        let later = Timestamp::from_second(100).unwrap();
        queue.change(first, |record| record.next = later);
        let (due, next) = queue.due(Timestamp::from_second(50).unwrap(), &HashSet::new());
        assert_eq!((due.iter().map(|(number, _)| *number).collect::<Vec<_>>(), next), (vec![other], Some(later)));
        let (due, _) = queue.due(later, &HashSet::from([queue.record(other).unwrap().lane()]));
        assert_eq!(due.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [first]);
    }

    #[test]
    fn message_that_has_waited_longest_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let queue = MessageQueue::open(directory.path().join("notify")).unwrap();
        let add = |to: &str| queue.add(record("a", to, NotificationKind::Deployed), content()).unwrap().unwrap();
        let numbers = ["x@example.com", "y@example.com", "z@example.com"].map(add);
        for (number, second) in numbers.into_iter().zip([30, 10, 20]) {
            queue.change(number, |record| record.next = Timestamp::from_second(second).unwrap());
        }
        let (due, _) = queue.due(Timestamp::from_second(30).unwrap(), &HashSet::new());
        let due: Vec<_> = due.into_iter().map(|(number, _)| number).collect();
        assert_eq!(due, [numbers[1], numbers[2], numbers[0]]);
    }

    #[test]
    fn recovery_refers_to_the_failures_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let queue = MessageQueue::open(directory.path().join("notify")).unwrap();
        let mut references = Vec::new();
        for (event, kind) in [
            ("a", NotificationKind::Deployed),
            ("b", NotificationKind::Failed),
            ("c", NotificationKind::Failed),
            ("d", NotificationKind::Deployed),
            ("e", NotificationKind::Failed),
        ] {
            let number = queue.add(record(event, "x@example.com", kind), content()).unwrap().unwrap();
            references.push(queue.record(number).unwrap().references.join(" "));
        }
        assert_eq!(references, ["", "", "<b@example.com>", "<b@example.com> <c@example.com>", ""]);
    }

    #[test]
    fn thousand_crashes_give_two_messages() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let mut queue = MessageQueue::open(path.clone()).unwrap();
        let add = |queue: &MessageQueue, event: &str, kind| queue.add(record(event, "x@example.com", kind), content()).unwrap();
        assert_eq!(add(&queue, "calm", NotificationKind::SiteUp), None, "the end of no problem is no news");
        let added = (0..1000).filter(|crash| add(&queue, &format!("down {crash}"), NotificationKind::SiteDown).is_some()).count();
        assert_eq!(added, 1);
        queue = MessageQueue::open(path).unwrap();
        assert_eq!(add(&queue, "down again", NotificationKind::SiteDown), None, "a restart forgets no problem");
        assert!(add(&queue, "up", NotificationKind::SiteUp).is_some());
        assert_eq!(add(&queue, "up again", NotificationKind::SiteUp), None);
        assert!(add(&queue, "down later", NotificationKind::SiteDown).is_some());
    }

    #[test]
    fn full_queue_of_a_project_refuses_messages_and_old_records_are_pruned() {
        let directory = tempfile::tempdir().unwrap();
        let queue = MessageQueue::open(directory.path().join("notify")).unwrap();
        let old = queue.add(record("old", "x@example.com", NotificationKind::Deployed), content()).unwrap().unwrap();
        queue.change(old, |record| {
            record.state = MessageState::Failed;
            record.ended = Some(Timestamp::UNIX_EPOCH);
        });
        {
            let mut table = queue.table.lock();
            for number in 10..10 + MAX_WAITING as u64 {
                table.messages.insert(number, record(&number.to_string(), "x@example.com", NotificationKind::Deployed));
            }
        }
        let refused = queue.add(record("new", "x@example.com", NotificationKind::Deployed), content()).unwrap_err();
        assert!(refused.to_string().contains("500 messages"), "{refused}");
        let other =
            MessageRecord { project: None, environment: None, ..record("new", "x@example.com", NotificationKind::Deployed) };
        queue.add(other, content()).unwrap().unwrap();
        queue.table.lock().messages.retain(|number, _| *number < 20);
        queue.add(record("new", "x@example.com", NotificationKind::Deployed), content()).unwrap().unwrap();
        assert_eq!(queue.record(old), None, "an old record is pruned");
        assert!(queue.message(old).is_err());
    }
}
