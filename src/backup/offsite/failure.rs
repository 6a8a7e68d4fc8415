//! The conversion of rustic's errors into failures of the off-site worker.

use rustic_core::RusticError;

use super::super::error::{BackupFailure, FailureKind};
use crate::model::sanitise_line;

/// The maximum length of a message, in characters.
const MAX_MESSAGE: usize = 1000;

/// Converts an error of rustic. `doing` is the failed action. `first` is the failure of the store that caused the error.
pub(super) fn of_rustic(doing: &str, error: &RusticError, first: Option<String>) -> BackupFailure {
    if error.is_incorrect_password() {
        let why = format!("cannot {doing}: the repository has another password");
        let hint = String::from("write the password with which the repository was created into the password file");
        return BackupFailure { hint: Some(hint), ..BackupFailure::new(FailureKind::Refused, why) };
    }
    if error.to_string().contains("Config version") {
        let why = format!(
            "cannot {doing}: the repository has a newer format than this version of larder supports (expected at most 2)"
        );
        let hint = String::from("update larder, or choose another directory for the copies of this server");
        return BackupFailure { hint: Some(hint), ..BackupFailure::new(FailureKind::Refused, why) };
    }
    let cause = first.unwrap_or_else(|| {
        let text = error.display_log();
        let text = text.strip_prefix("Error: ").unwrap_or(&text).to_owned();
        sanitise_line(&text)
    });
    let why: String = format!("cannot {doing}: {cause}").chars().take(MAX_MESSAGE).collect();
    BackupFailure::new(FailureKind::Machine, why)
}
