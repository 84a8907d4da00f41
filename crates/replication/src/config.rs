//! How openraft is set up. Each value that is not a default is one that was found to matter.

use std::{sync::Arc, time::Duration};

use openraft::{Config, ConfigError, SnapshotPolicy};

/// For how long after a majority's answer a leader takes proposals in, and followers keep it: openraft takes the longest
/// election timeout. A leader that falls silent is replaced this and an election timeout after its last word: in 1.3 to 1.7 s.
/// By then it failed to say six heartbeats, which a machine that is only slow does not.
pub(crate) const LEASE: Duration = Duration::from_millis(850);
/// The shortest election timeout. It is also how long a vote may take, the voter's disk included: openraft gives it up then.
/// Between it and the longest, two candidates' votes seldom cross.
const ELECTION_MIN_MS: u64 = 450;
/// Each costs every group that is awake; a shorter one would save a part of itself only.
const HEARTBEAT_MS: u64 = 200;
/// A follower that answered entries so recently needs no heartbeat. Together with a heartbeat's interval and a tick it stays
/// below half a lease, past which leadership is confirmed by asking.
const HEARTBEAT_SPARED_MS: u64 = 150;
/// How long a follower may take requests in without an answer. Its answers wait for its disk.
pub(crate) const APPEND_PATIENCE: Duration = Duration::from_secs(2);

/// The settings of a group. Without `ticks` it neither starts elections by itself nor sends heartbeats, and idle costs no
/// CPU: right for a group of one voter.
pub(crate) fn config(ticks: bool) -> Result<Arc<Config>, ConfigError> {
    let config = Config {
        cluster_name: "quipu".to_owned(),
        enable_tick: ticks,
        heartbeat_interval: HEARTBEAT_MS,
        heartbeat_min_interval: Some(HEARTBEAT_SPARED_MS),
        election_timeout_min: ELECTION_MIN_MS,
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

    #[test]
    fn a_leader_that_is_answered_needs_no_confirmation_between_two_heartbeats() {
        let config = super::config(true).unwrap();
        let gap = config.heartbeat_interval * 77 / 64 + config.heartbeat_min_interval.unwrap();
        assert!(gap < super::LEASE.as_millis() as u64 / 2, "{gap} ms");
    }
}
