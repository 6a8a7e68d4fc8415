//! The limits of workers by their class. No limit exceeds the limit that the operator has set.

use larder_sandbox::{ResourceLimits, half_of_memory};

use super::config::KeeperConfig;
use crate::model::LimitClass;

const MIB: u64 = 1024 * 1024;

/// Returns the limits of `class`.
pub fn limits_of(class: LimitClass, config: &KeeperConfig) -> ResourceLimits {
    let usual = ResourceLimits { memory: None, processes: 256, weight: 100, file: None, background: false };
    match class {
        LimitClass::Build { memory } => {
            let most = config.build_memory.unwrap_or_else(|| half_of_memory().clamp(256 * MIB, 2048 * MIB));
            let memory = Some(memory.map_or(most, |asked| asked.min(most)));
            ResourceLimits { memory, processes: config.build_processes, weight: 30, file: Some(4096 * MIB), background: true }
        }
        LimitClass::Application { memory } => {
            let memory = memory.into_iter().chain(config.application_memory).min();
            ResourceLimits { memory, processes: 1024, ..usual }
        }
        LimitClass::Service => ResourceLimits { memory: Some(1024 * MIB), ..usual },
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn memory_limit_never_exceeds_the_limit_of_the_operator() {
        let mut config = KeeperConfig::new(PathBuf::from("/nowhere"));
        let memory = |class, config: &KeeperConfig| limits_of(class, config).memory;
        let build = |memory| LimitClass::Build { memory };
        let application = |memory| LimitClass::Application { memory };
        assert_eq!(memory(build(Some(10 * MIB)), &config), Some(10 * MIB));
        assert!(memory(build(None), &config).is_some_and(|bytes| bytes <= 2048 * MIB));
        assert_eq!(memory(application(None), &config), None);
        assert_eq!(memory(application(Some(MIB)), &config), Some(MIB));
        config.build_memory = Some(8192 * MIB);
        config.application_memory = Some(64 * MIB);
        assert_eq!(memory(build(None), &config), Some(8192 * MIB));
        assert_eq!(memory(build(Some(9000 * MIB)), &config), Some(8192 * MIB));
        assert_eq!(memory(application(Some(100 * MIB)), &config), Some(64 * MIB));
        assert_eq!(memory(application(Some(MIB)), &config), Some(MIB));
    }
}
