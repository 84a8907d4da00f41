//! The partitions that a member has: begun, let go, and how far they were read.

use super::*;

impl Driver {
    /// Brings what is held closer to what is assigned. What is to be let go and is not in use is returned.
    pub(super) fn reconcile(&mut self) -> Vec<TopicPartition> {
        let wanted: Vec<_> = self
            .assigned
            .owned
            .difference(&self.assigned.revoking)
            .cloned()
            .collect();
        for partition in wanted {
            if !self.held.contains_key(&partition) {
                self.start(partition);
            }
        }
        let (mut free, mut stop) = (Vec::new(), Vec::new());
        for partition in &self.assigned.revoking {
            match self.held.get(partition) {
                Some(Stage::Running) => stop.push(partition.clone()),
                Some(Stage::Stopping) => {}
                Some(Stage::Starting(_)) | None => free.push(partition.clone()),
            }
        }
        for partition in &stop {
            self.held.insert(partition.clone(), Stage::Stopping);
        }
        for partition in &free {
            self.held.remove(partition);
        }
        let owned = &self.assigned.owned;
        let lost = self
            .held
            .extract_if(|partition, _| !owned.contains(partition));
        let lost: Vec<_> = lost.collect();
        self.lose(lost);
        if !stop.is_empty() {
            let _ = self.events.send(Event::Stop(stop));
        }
        free
    }

    /// Finds out where to begin in a partition.
    pub(super) fn start(&mut self, partition: TopicPartition) {
        self.starts += 1;
        let number = self.starts;
        self.held.insert(partition.clone(), Stage::Starting(number));
        let progress = Arc::clone(&self.progress);
        let start = match self.earliest.contains(&partition.0) {
            true => Start::Earliest,
            false => self.config.start,
        };
        let finding = async move {
            let mut attempt = 0;
            loop {
                match beginning(&progress, &partition, start).await {
                    // A topic may be so new that not every node knows it.
                    Err(error)
                        if error.is_retryable()
                            || (error.is_stale_metadata() && attempt < NEW_TOPIC_TRIES) =>
                    {
                        attempt += 1;
                        sleep(backoff(attempt, FIRST_PAUSE, LAST_PAUSE)).await;
                    }
                    found => return Done::Started(partition, number, found),
                }
            }
        };
        self.tasks.spawn(finding);
    }

    /// Records of these are handed out no more: stores how far they were processed, and tells whoever wants to know.
    pub(super) fn let_go(&mut self, partitions: Vec<TopicPartition>) {
        let (progress, config) = (Arc::clone(&self.progress), Arc::clone(&self.config));
        let storing = async move {
            if let Some(listener) = &config.listener {
                listener.revoked(&partitions).await;
            }
            if config.auto_commit.is_some()
                && let Err(error) = progress.store(Some(&partitions)).await
            {
                // Whoever gets them processes some records again.
                tracing::warn!(%error, "the offsets of partitions that are given away were not stored");
            }
            Done::LetGo(partitions)
        };
        self.tasks.spawn(storing);
    }

    pub(super) fn store(&mut self) {
        if std::mem::replace(&mut self.storing, true) {
            return;
        }
        let progress = Arc::clone(&self.progress);
        let storing = async move {
            if let Err(error) = progress.store(None).await
                && !is_lost(&error)
            {
                tracing::warn!(%error, "offsets were not stored, and are the next time");
            }
            Done::Stored
        };
        self.tasks.spawn(storing);
    }

    /// Takes in what a task came to. What can be let go now is returned.
    pub(super) fn done(&mut self, done: Done) -> Option<Vec<TopicPartition>> {
        match done {
            Done::Stored => self.storing = false,
            Done::Started(partition, number, found) => {
                if self.held.get(&partition) != Some(&Stage::Starting(number)) {
                    return None;
                }
                match found {
                    Ok(offset) => {
                        self.held.insert(partition.clone(), Stage::Running);
                        self.progress.begin(partition.clone());
                        if let Some(listener) = &self.config.listener {
                            listener.assigned(std::slice::from_ref(&partition));
                        }
                        let _ = self.events.send(Event::Begin(vec![(partition, offset)]));
                    }
                    // Such as of a topic that is deleted: the next assignment tells.
                    Err(error) => {
                        tracing::warn!(topic = %partition.0, partition = partition.1, %error, "a partition is not read");
                        self.held.remove(&partition);
                    }
                }
            }
            Done::LetGo(partitions) => {
                let mut let_go = partitions;
                // Those that were lost meanwhile are not to be spoken of.
                let_go.retain(|partition| self.held.get(partition) == Some(&Stage::Stopping));
                for partition in &let_go {
                    self.held.remove(partition);
                    self.progress.end(partition);
                }
                let mut free = self.reconcile();
                free.retain(|partition| !let_go.contains(partition));
                let revoking = &self.assigned.revoking;
                let_go.retain(|partition| revoking.contains(partition));
                free.extend(let_go);
                return (!free.is_empty()).then_some(free);
            }
        }
        None
    }
}
