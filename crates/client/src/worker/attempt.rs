//! One attempt at a record, and what follows from it.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use tokio::time::timeout;

use super::{
    Handle, WorkerConfig,
    router::Router,
    trail,
    work::{Failure, Work},
};

/// What attempts need.
pub(super) struct Shared {
    pub(super) handle: Handle,
    pub(super) router: Router,
    pub(super) config: WorkerConfig,
}

impl Shared {
    /// Works on a record and, where that fails, puts it where it belongs. Whether it failed for a reason that may pass.
    pub(super) async fn work_on(&self, work: &Arc<Work>) -> bool {
        match self.attempt(work).await {
            Ok(()) => false,
            Err(failure) => {
                self.router.put_away(work, &failure).await;
                matches!(failure, Failure::Transient(_))
            }
        }
    }

    async fn attempt(&self, work: &Arc<Work>) -> Result<(), Failure> {
        let redriven_for = trail::redriven_for(&work.record.headers);
        if redriven_for.is_some_and(|group| group != self.router.group) {
            // This group was through with it before.
            return Ok(());
        }
        let limit = self.config.attempt_timeout;
        let attempt = async { (self.handle)(Arc::clone(work)).await };
        match timeout(limit, AssertUnwindSafe(attempt).catch_unwind()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => Err(Failure::transient(format_args!(
                "the handler panicked: {}",
                panic_message(panic.as_ref())
            ))),
            Err(_) => Err(Failure::transient(format_args!(
                "the handler took longer than {limit:?}"
            ))),
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
