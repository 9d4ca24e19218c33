//! The threads of a service: some prepare payloads, one calls the encoder.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::{Answer, Item, Shared, State, Work};
use crate::encode::{EncodeError, EncodeStage, Prepared};
use crate::error::ErrorKind;

impl Shared {
    /// A thread that prepares: the oldest payload first, as memory allows, until the service is dropped.
    pub(super) fn prepare(&self) {
        let mut state = self.state.lock();
        loop {
            if !state.may_prepare(self.options.prepare_bytes) {
                if state.closing && state.next_raw == state.queue.len() {
                    return;
                }
                self.raw.wait(&mut state);
                continue;
            }
            let at = state.next_raw;
            let seq = state.front_seq + at as u64;
            state.next_raw += 1;
            let item = &mut state.queue[at];
            item.work = Work::Preparing;
            let (payload, needed_bytes) = (item.payload.clone(), item.prepare_bytes);
            state.n_preparing += 1;
            state.hold_prepared(needed_bytes);
            let stopped = state.stats.stopped;
            drop(state);

            let prepared = match stopped {
                // The answer will be that it was not tried.
                true => Ok(Prepared::Payload(payload.clone())),
                false => catch_unwind(AssertUnwindSafe(|| self.encoder.prepare(&payload)))
                    .unwrap_or_else(|panic| {
                        self.state.lock().stats.n_panics += 1;
                        Err(EncodeError {
                            stage: EncodeStage::Preprocess,
                            reason: format!("the encoder panicked: {}", panic_message(&*panic)),
                        })
                    }),
            };
            drop(payload);
            let kept_bytes = prepared.as_ref().map_or(0, Prepared::size_bytes);

            state = self.state.lock();
            state.n_preparing -= 1;
            state.stats.prepared_bytes -= needed_bytes;
            state.hold_prepared(kept_bytes);
            // Its place is still in the queue: nothing leaves before it is ready.
            let at = (seq - state.front_seq) as usize;
            let item = &mut state.queue[at];
            item.work = Work::Ready(prepared);
            item.prepare_bytes = kept_bytes;
            item.since = Instant::now();
            self.work.notify_one();
            self.raw.notify_one();
        }
    }

    /// The worker: batch after batch until the service is dropped and the queue is empty.
    pub(super) fn work(&self) {
        while let Some(mut batch) = self.next_batch() {
            let mut answers: Vec<Option<Answer>> = Vec::with_capacity(batch.len());
            let mut left = Vec::with_capacity(batch.len());
            for item in &mut batch {
                answers.push(match item.take_prepared() {
                    Ok(Prepared::Code(code)) => Some(self.check_len(Ok(code))),
                    Ok(prepared) => {
                        left.push(prepared);
                        None
                    }
                    Err(error) => Some(Err(error)),
                });
            }
            let mut encoded = Vec::with_capacity(left.len());
            if !left.is_empty() {
                self.encode(&left, &mut encoded);
            }
            drop(left);
            let mut encoded = encoded.into_iter();
            let answers: Vec<Answer> = answers
                .into_iter()
                .map(|answer| {
                    answer.unwrap_or_else(|| encoded.next().expect("one answer for each payload"))
                })
                .collect();
            self.answer(batch, answers);
        }
    }

    fn answer(&self, mut batch: Vec<Item>, answers: Vec<Answer>) {
        // The counts first, so that whoever holds an answer finds it counted.
        let held_bytes: usize = batch.iter().map(|item| item.payload.size_bytes()).sum();
        let prepared_bytes: usize = batch.iter().map(|item| item.prepare_bytes).sum();
        let n_encoded = answers.iter().filter(|answer| answer.is_ok()).count();
        let mut state = self.state.lock();
        state.stats.n_encoded += n_encoded as u64;
        state.stats.n_failed += (answers.len() - n_encoded) as u64;
        state.stats.held_bytes -= held_bytes;
        state.stats.prepared_bytes -= prepared_bytes;
        for (item, answer) in batch.iter_mut().zip(answers) {
            item.answer(answer);
        }
        state.n_answered += batch.len() as u64;
        drop(state);
        drop(batch);
        self.answered.notify_all();
        self.raw.notify_all();
    }

    /// Waits until a batch is due and takes it; none when the service closes with nothing queued.
    fn next_batch(&self) -> Option<Vec<Item>> {
        let mut state = self.state.lock();
        loop {
            if state.closing && state.queue.is_empty() {
                return None;
            }
            let max_batch = state.batch_size.get();
            let is_ready = |item: &&Item| matches!(item.work, Work::Ready(_));
            let n = state
                .queue
                .iter()
                .take_while(is_ready)
                .take(max_batch)
                .count();
            if n == 0 {
                self.work.wait(&mut state);
                continue;
            }
            let due = state.queue[0].since.checked_add(self.options.max_delay);
            // Waiting for company that cannot come would be waiting for nothing.
            let full = state.crowded || state.closing || state.n_answered < state.flush_to;
            let raw_left = state.next_raw < state.queue.len();
            let company =
                state.n_preparing > 0 || raw_left && state.may_prepare(self.options.prepare_bytes);
            if n == max_batch
                || (full || raw_left) && !company
                || due.is_some_and(|due| due <= Instant::now())
            {
                state.front_seq += n as u64;
                state.next_raw -= n;
                return Some(state.queue.drain(..n).collect());
            }
            match due {
                Some(due) => {
                    self.work.wait_until(&mut state, due);
                }
                None => self.work.wait(&mut state),
            }
        }
    }

    /// Appends one answer a payload. A call that fails as a whole is repeated on each half.
    fn encode(&self, batch: &[Prepared], answers: &mut Vec<Answer>) {
        {
            let state = self.state.lock();
            if let Some(kind) = state.breaker.error() {
                refuse(&kind, batch.len(), answers);
                return;
            }
        }
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.encoder.encode_prepared(batch)));
        let mut state = self.state.lock();
        state.stats.n_calls += 1;
        state.stats.max_batch = state.stats.max_batch.max(batch.len());
        let mut is_memory = false;
        let reason = match outcome {
            Ok(Ok(codes)) if codes.len() == batch.len() => {
                state.breaker.passed(batch.len());
                state
                    .batch_size
                    .succeeded(batch.len(), start.elapsed().as_secs_f64());
                drop(state);
                answers.extend(codes.into_iter().map(|code| self.check_len(code)));
                return;
            }
            Ok(Ok(codes)) => format!(
                "expected {} answers from the encoder, got {}",
                batch.len(),
                codes.len()
            ),
            Ok(Err(error)) => {
                match error.kind() {
                    ErrorKind::DeviceMemory(_) => {
                        is_memory = true;
                        state.batch_size.did_not_fit(batch.len());
                    }
                    ErrorKind::DeviceLost(_) => {
                        state.stats.n_failed_calls += 1;
                        state.breaker.open(&error.to_string());
                        state.stop(batch.len(), answers);
                        return;
                    }
                    _ => {}
                }
                error.to_string()
            }
            Err(panic) => {
                state.stats.n_panics += 1;
                format!("the encoder panicked: {}", panic_message(&*panic))
            }
        };
        state.stats.n_failed_calls += 1;
        if let [_] = batch {
            if state.breaker.failed(&reason) {
                state.stop(0, answers);
            }
            answers.push(Err(EncodeError {
                stage: EncodeStage::Encode,
                reason,
            }));
            return;
        }
        drop(state);
        if is_memory {
            tracing::warn!(payloads = batch.len(), reason, "the batch is halved");
        }
        let (first, second) = batch.split_at(batch.len() / 2);
        self.encode(first, answers);
        self.encode(second, answers);
    }

    fn check_len(&self, answer: Answer) -> Answer {
        let code = answer?;
        match self.encoder.code_len().check(code.code_len()) {
            Ok(()) => Ok(code),
            Err(error) => Err(EncodeError {
                stage: EncodeStage::Encode,
                reason: error.to_string(),
            }),
        }
    }
}

impl State {
    /// Whether there is a payload to prepare and memory for it. One that needs more than all of it is
    /// prepared alone.
    fn may_prepare(&self, prepare_bytes: usize) -> bool {
        let Some(item) = self.queue.get(self.next_raw) else {
            return false;
        };
        let held_bytes = self.stats.prepared_bytes;
        held_bytes == 0 || held_bytes.saturating_add(item.prepare_bytes) <= prepare_bytes
    }

    fn hold_prepared(&mut self, bytes: usize) {
        self.stats.prepared_bytes += bytes;
        self.stats.max_prepared_bytes =
            self.stats.max_prepared_bytes.max(self.stats.prepared_bytes);
    }

    /// Says that the breaker has opened, and answers `n` payloads with that.
    fn stop(&mut self, n: usize, answers: &mut Vec<Answer>) {
        self.stats.stopped = true;
        if let Some(kind) = self.breaker.error() {
            tracing::error!(error = %kind, "encoder service stopped");
            refuse(&kind, n, answers);
        }
    }
}

fn refuse(kind: &ErrorKind, n: usize, answers: &mut Vec<Answer>) {
    let error = EncodeError {
        stage: EncodeStage::Stopped,
        reason: kind.to_string(),
    };
    answers.extend((0..n).map(|_| Err(error.clone())));
}

impl Item {
    fn take_prepared(&mut self) -> Result<Prepared, EncodeError> {
        match std::mem::replace(&mut self.work, Work::Preparing) {
            Work::Ready(prepared) => prepared,
            Work::Raw | Work::Preparing => unreachable!("a batch is ready when it is taken"),
        }
    }
}

/// The first line of what a panic said.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .and_then(|message| message.lines().next())
        .unwrap_or("without a message")
}
