//! What happens to a push: intake, queue, plan, phases, the runner, the journal, recovery.
