//! The bound on the bytes that requests in flight hold.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{BrokerError, Reason};

/// A number of bytes that are handed out and come back when the permit is dropped.
#[derive(Clone, Debug)]
pub(crate) struct MemoryBudget {
    semaphore: Arc<Semaphore>,
    total: usize,
}

/// Bytes taken from a budget.
pub type MemoryPermit = OwnedSemaphorePermit;

impl MemoryBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        let total = bytes.min(Semaphore::MAX_PERMITS);
        Self {
            semaphore: Arc::new(Semaphore::new(total)),
            total,
        }
    }

    /// The most bytes that one request can ever be given.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Takes bytes at once, or refuses.
    pub(crate) fn take(&self, bytes: usize) -> Result<MemoryPermit, BrokerError> {
        if bytes > self.total {
            return Err(self.never(bytes));
        }
        u32::try_from(bytes)
            .ok()
            .and_then(|permits| self.semaphore.clone().try_acquire_many_owned(permits).ok())
            .ok_or_else(|| {
                BrokerError::new(
                    Reason::Overloaded,
                    format!(
                        "requests in flight hold {} of {} bytes and this one needs {bytes}: retry shortly, or give the broker more --memory",
                        self.used(),
                        self.total
                    ),
                )
            })
    }

    /// Takes bytes as soon as they are free.
    ///
    /// # Errors
    /// Where there never are as many.
    pub(crate) async fn wait(&self, bytes: usize) -> Result<MemoryPermit, BrokerError> {
        let permits = u32::try_from(bytes).ok().filter(|_| bytes <= self.total);
        let permits = permits.ok_or_else(|| self.never(bytes))?;
        let waiting = Arc::clone(&self.semaphore).acquire_many_owned(permits);
        // The budget is never closed.
        waiting.await.map_err(|_| BrokerError::shutting_down())
    }

    fn never(&self, bytes: usize) -> BrokerError {
        BrokerError::new(
            Reason::BatchTooLarge,
            format!(
                "the request needs {bytes} bytes, all requests together may hold {}: send less at a time, or give the broker more --memory",
                self.total
            ),
        )
    }

    /// Takes bytes for work that can as well wait: not from the last half, which is for work that cannot.
    pub(crate) fn take_spare(&self, bytes: usize) -> Option<MemoryPermit> {
        if self.used().saturating_add(bytes) > self.total / 2 {
            return None;
        }
        self.take(bytes).ok()
    }

    /// Bytes taken and not yet back.
    pub(crate) fn used(&self) -> usize {
        self.total - self.semaphore.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryBudget;
    use crate::error::Reason;

    #[test]
    fn bytes_come_back_with_the_permit() {
        let budget = MemoryBudget::new(100);
        let first = budget.take(60).unwrap();
        let refused = budget.take(60).unwrap_err();
        assert_eq!(refused.reason, Reason::Overloaded);
        assert!(refused.reason.is_retryable());
        drop(first);
        assert!(budget.take(60).is_ok());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_never_fits_is_not_worth_a_retry() {
        let budget = MemoryBudget::new(100);
        let refused = budget.take(101).unwrap_err();
        assert_eq!(refused.reason, Reason::BatchTooLarge);
        assert!(!refused.reason.is_retryable());
        assert!(budget.take(100).is_ok());
    }

    #[test]
    fn work_that_can_wait_leaves_half() {
        let budget = MemoryBudget::new(100);
        let _first = budget.take_spare(30).unwrap();
        assert!(budget.take_spare(30).is_none());
        assert!(budget.take(70).is_ok());
    }
}
