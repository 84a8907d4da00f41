//! How openraft is set up. Each value that is not a default is one that was found to matter.

use std::{sync::Arc, time::Duration};

use openraft::{Config, ConfigError, SnapshotPolicy};

/// For how long after a majority's answer a leader takes proposals in, and followers keep it: openraft takes the longest
/// election timeout. A leader that dies is replaced this and an election timeout after its last heartbeat: in 1.8 to 2.4 s. Less
/// would depose leaders whose machine is only slow.
pub(crate) const LEASE: Duration = Duration::from_millis(1200);
const HEARTBEAT_MS: u64 = 250;
/// How long a follower may take requests in without an answer. Its answers wait for its disk.
pub(crate) const APPEND_PATIENCE: Duration = Duration::from_secs(2);

/// The settings of a group. Without `ticks` it neither starts elections by itself nor sends heartbeats, and idle costs no
/// CPU: right for a group of one voter.
pub(crate) fn config(ticks: bool) -> Result<Arc<Config>, ConfigError> {
    let config = Config {
        cluster_name: "quipu".to_owned(),
        enable_tick: ticks,
        heartbeat_interval: HEARTBEAT_MS,
        heartbeat_min_interval: Some(HEARTBEAT_MS),
        election_timeout_min: LEASE.as_millis() as u64 / 2,
        election_timeout_max: LEASE.as_millis() as u64,
        enable_pre_vote: Some(true),
        // It would keep a leader from sending heartbeats that no majority answered for a while: also one that slept.
        quorum_loss_probe_interval: None,
        // A restarted leader must not go on in its old term: it would use (term, index) of entries again that it had sent to
        // followers but not flushed, and logs would differ without anyone noticing.
        enable_leader_restore: Some(false),
        allow_log_reversion: None,
        // Retention decides what goes, through the log; see `state_machine`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: 10_000,
        api_channel_size: Some(1024),
        state_machine_channel_size: Some(64),
        // Traces of log stages are off: they would cost memory in every group.
        log_stage_capacity: Some(1),
        ..Config::default()
    };
    config.validate().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use openraft::SnapshotPolicy;

    #[test]
    fn settings_that_would_lose_data_or_keep_sleepers_from_waking_stay_off() {
        for ticks in [true, false] {
            let config = super::config(ticks).unwrap();
            assert_eq!(config.enable_leader_restore, Some(false));
            assert_eq!(config.allow_log_reversion, None);
            assert_eq!(config.quorum_loss_probe_interval, None);
            assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
            assert_eq!(config.max_in_snapshot_log_to_keep, u64::MAX);
            assert_eq!(config.enable_tick, ticks);
        }
    }
}
