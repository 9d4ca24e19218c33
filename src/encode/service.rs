//! One encoder for many callers: batches across threads, bounded memory, failures contained.
//!
//! A worker thread of its own calls the encoder, so a model that must stay on one thread can. Callers
//! submit payloads and wait on tickets. An encoder that fails as a whole, panics or answers short is
//! asked again with half of the batch, down to single payloads, so one poisonous payload never harms its
//! neighbours. No code of a failed call is ever handed out. Process-killing inputs are out of reach here.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{EncodeError, EncodeStage, Encoder, Payload};
use crate::code::HashCode;
use crate::error::{Error, ErrorKind, Result};

type Answer = Result<HashCode, EncodeError>;

/// How an [`EncoderService`] batches, and when it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Payloads of one call at most; the encoder's own maximum also holds. Default: 256.
    pub max_batch: usize,
    /// How long the first payload of a batch waits for company. Default: 5 ms.
    pub max_delay: Duration,
    /// Bytes of payloads taken in and not yet answered; above that, `submit` blocks. Default: 256 MB.
    pub queue_bytes: usize,
    /// Calls that fail on a single payload, in a row, after which the service stops; 0 for never.
    /// Default: 64.
    pub max_failures: usize,
}

impl Default for ServiceOptions {
    fn default() -> ServiceOptions {
        ServiceOptions {
            max_batch: 256,
            max_delay: Duration::from_millis(5),
            queue_bytes: 256_000_000,
            max_failures: 64,
        }
    }
}

/// What a service has done since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// Payloads taken in.
    pub n_submitted: u64,
    /// Payloads that got a code.
    pub n_encoded: u64,
    /// Payloads that got a reason instead.
    pub n_failed: u64,
    /// Calls of the encoder.
    pub n_calls: u64,
    /// Calls that failed as a whole: an error, a panic, or the wrong number of answers.
    pub n_failed_calls: u64,
    /// Panics among them.
    pub n_panics: u64,
    /// Payloads of the largest call.
    pub max_batch: usize,
    /// Bytes taken in and not yet answered.
    pub held_bytes: usize,
    /// The most that `held_bytes` has been.
    pub max_held_bytes: usize,
    /// True from the moment the service stops itself until it is reset.
    pub stopped: bool,
}

/// Encodes payloads of many threads in common batches, on one worker thread.
///
/// Dropping it answers what is queued, then ends the worker.
pub struct EncoderService {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    /// Held while one payload finds room, so that a large one is not overtaken for ever.
    door: Mutex<()>,
}

struct Shared {
    encoder: Arc<dyn Encoder>,
    options: ServiceOptions,
    state: Mutex<State>,
    /// There may be a batch to send: for the worker.
    work: Condvar,
    /// Payloads were answered: for those who wait for room, and for `flush`.
    answered: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    stats: ServiceStats,
    /// Payloads answered, in the order they came.
    n_answered: u64,
    /// Payloads up to this count are sent without waiting for company.
    flush_to: u64,
    /// True while a payload waits for room: then waiting for company would be waiting for nothing.
    crowded: bool,
    closing: bool,
    /// Whole calls in a row that failed on a single payload, and the last reason.
    failures: usize,
    last_failure: String,
}

/// A queued payload. Dropped without an answer, it answers that it was not tried, so no ticket ever
/// waits in vain.
struct Item {
    payload: Payload,
    since: Instant,
    ticket: Arc<TicketState>,
    /// Place in the ticket; none once answered.
    slot: Option<usize>,
}

#[derive(Default)]
struct TicketState {
    /// The answers, and how many are missing.
    answers: Mutex<(Vec<Option<Answer>>, usize)>,
    complete: Condvar,
}

/// The claim to the answers of one [`EncoderService::submit`].
#[must_use = "the codes are handed out by `wait`"]
pub struct Ticket(Arc<TicketState>);

impl Ticket {
    /// Waits for every answer: one a payload, in the order of submission.
    pub fn wait(self) -> Vec<Result<HashCode, EncodeError>> {
        let mut answers = self.0.answers.lock();
        while answers.1 > 0 {
            self.0.complete.wait(&mut answers);
        }
        std::mem::take(&mut answers.0)
            .into_iter()
            .map(|answer| answer.expect("no answer is missing"))
            .collect()
    }

    /// True once [`wait`](Ticket::wait) would return at once.
    pub fn is_ready(&self) -> bool {
        self.0.answers.lock().1 == 0
    }
}

impl Item {
    fn answer(&mut self, answer: Answer) {
        let Some(slot) = self.slot.take() else { return };
        let mut answers = self.ticket.answers.lock();
        answers.0[slot] = Some(answer);
        answers.1 -= 1;
        if answers.1 == 0 {
            self.ticket.complete.notify_all();
        }
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        self.answer(Err(EncodeError {
            stage: EncodeStage::Stopped,
            reason: "the service ended before this payload was tried".to_owned(),
        }));
    }
}

impl EncoderService {
    /// Starts the worker.
    ///
    /// # Errors
    /// `InvalidArgument` if `max_batch` is 0, `Io` if no thread can be had.
    pub fn new(encoder: Arc<dyn Encoder>, options: ServiceOptions) -> Result<EncoderService> {
        if options.max_batch == 0 {
            return Err(Error::invalid("a batch has at least 1 payload, got 0"));
        }
        let shared = Arc::new(Shared {
            encoder,
            options,
            state: Mutex::default(),
            work: Condvar::new(),
            answered: Condvar::new(),
        });
        let worker = std::thread::Builder::new()
            .name("tanhash-encoder".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.work()
            })
            .map_err(|error| Error::io("encoder thread", error))?;
        Ok(EncoderService {
            shared,
            worker: Some(worker),
            door: Mutex::new(()),
        })
    }

    /// The encoder behind the service.
    pub fn encoder(&self) -> &Arc<dyn Encoder> {
        &self.shared.encoder
    }

    /// Queues payloads. Blocks while more than `queue_bytes` would be held; a payload that is larger
    /// than that by itself is taken in once nothing else is held.
    ///
    /// # Errors
    /// `EncoderStopped` once too many calls have failed in a row. Payloads that were taken in before
    /// are answered with [`EncodeStage::Stopped`].
    pub fn submit(&self, payloads: Vec<Payload>) -> Result<Ticket> {
        let n = payloads.len();
        let ticket = Arc::new(TicketState {
            answers: Mutex::new((vec![None; n], n)),
            complete: Condvar::new(),
        });
        if n == 0 {
            self.shared.check_running(&self.shared.state.lock())?;
        }
        for (slot, payload) in payloads.into_iter().enumerate() {
            let size_bytes = payload.size_bytes();
            let _door = self.door.lock();
            let mut state = self.shared.state.lock();
            let fits = |state: &State| {
                let held_bytes = state.stats.held_bytes;
                held_bytes == 0
                    || held_bytes.saturating_add(size_bytes) <= self.shared.options.queue_bytes
            };
            while !fits(&state) {
                state.crowded = true;
                self.shared.work.notify_one();
                self.shared.answered.wait(&mut state);
            }
            state.crowded = false;
            self.shared.check_running(&state)?;
            state.stats.n_submitted += 1;
            state.stats.held_bytes += size_bytes;
            state.stats.max_held_bytes = state.stats.max_held_bytes.max(state.stats.held_bytes);
            state.queue.push_back(Item {
                payload,
                since: Instant::now(),
                ticket: Arc::clone(&ticket),
                slot: Some(slot),
            });
            self.shared.work.notify_one();
        }
        Ok(Ticket(ticket))
    }

    /// Sends what is queued without waiting for company, and returns when every payload that was
    /// submitted before this call is answered.
    pub fn flush(&self) {
        let mut state = self.shared.state.lock();
        let target = state.stats.n_submitted;
        state.flush_to = state.flush_to.max(target);
        self.shared.work.notify_one();
        while state.n_answered < target {
            self.shared.answered.wait(&mut state);
        }
    }

    /// Lets a stopped service try its encoder again.
    pub fn reset(&self) {
        let mut state = self.shared.state.lock();
        state.failures = 0;
        state.stats.stopped = false;
    }

    /// What the service has done so far.
    pub fn stats(&self) -> ServiceStats {
        self.shared.state.lock().stats.clone()
    }
}

impl Drop for EncoderService {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(worker) = self.worker.take() {
            // It only panics if the counting above is wrong, and then every item has answered itself.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn check_running(&self, state: &State) -> Result<()> {
        if !state.stats.stopped {
            return Ok(());
        }
        Err(self.stopped(state).into())
    }

    fn stopped(&self, state: &State) -> ErrorKind {
        ErrorKind::EncoderStopped {
            failures: state.failures,
            last: state.last_failure.clone(),
        }
    }

    /// The worker: batch after batch until the service is dropped and the queue is empty.
    fn work(&self) {
        while let Some(mut batch) = self.next_batch() {
            let payloads: Vec<Payload> = batch.iter().map(|item| item.payload.clone()).collect();
            let mut answers = Vec::with_capacity(batch.len());
            self.encode(&payloads, &mut answers);
            drop(payloads);

            // The counts first, so that whoever holds an answer finds it counted.
            let held_bytes: usize = batch.iter().map(|item| item.payload.size_bytes()).sum();
            let n_encoded = answers.iter().filter(|answer| answer.is_ok()).count();
            let mut state = self.state.lock();
            state.stats.n_encoded += n_encoded as u64;
            state.stats.n_failed += (answers.len() - n_encoded) as u64;
            state.stats.held_bytes -= held_bytes;
            for (item, answer) in batch.iter_mut().zip(answers) {
                item.answer(answer);
            }
            state.n_answered += batch.len() as u64;
            drop(state);
            drop(batch);
            self.answered.notify_all();
        }
    }

    /// Waits until a batch is due and takes it; none when the service closes with nothing queued.
    fn next_batch(&self) -> Option<Vec<Item>> {
        let max_batch = self.options.max_batch.min(self.encoder.max_batch().max(1));
        let mut state = self.state.lock();
        loop {
            let Some(oldest) = state.queue.front() else {
                if state.closing {
                    return None;
                }
                self.work.wait(&mut state);
                continue;
            };
            let due = oldest.since.checked_add(self.options.max_delay);
            if state.queue.len() >= max_batch
                || state.closing
                || state.crowded
                || state.n_answered < state.flush_to
                || due.is_some_and(|due| due <= Instant::now())
            {
                let n = state.queue.len().min(max_batch);
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
    fn encode(&self, payloads: &[Payload], answers: &mut Vec<Answer>) {
        {
            let state = self.state.lock();
            if state.stats.stopped {
                let error = EncodeError {
                    stage: EncodeStage::Stopped,
                    reason: self.stopped(&state).to_string(),
                };
                answers.extend(payloads.iter().map(|_| Err(error.clone())));
                return;
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| self.encoder.encode(payloads)));
        let mut state = self.state.lock();
        state.stats.n_calls += 1;
        state.stats.max_batch = state.stats.max_batch.max(payloads.len());
        let reason = match outcome {
            Ok(Ok(codes)) if codes.len() == payloads.len() => {
                state.failures = 0;
                drop(state);
                answers.extend(codes.into_iter().map(|code| self.check_len(code)));
                return;
            }
            Ok(Ok(codes)) => format!(
                "expected {} answers from the encoder, got {}",
                payloads.len(),
                codes.len()
            ),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => {
                state.stats.n_panics += 1;
                format!("the encoder panicked: {}", panic_message(&*panic))
            }
        };
        state.stats.n_failed_calls += 1;
        if let [_] = payloads {
            self.count_failure(state, &reason);
            answers.push(Err(EncodeError {
                stage: EncodeStage::Encode,
                reason,
            }));
            return;
        }
        drop(state);
        let (first, second) = payloads.split_at(payloads.len() / 2);
        self.encode(first, answers);
        self.encode(second, answers);
    }

    fn count_failure(&self, mut state: MutexGuard<'_, State>, reason: &str) {
        state.failures += 1;
        state.last_failure = reason.to_owned();
        if self.options.max_failures > 0 && state.failures >= self.options.max_failures {
            state.stats.stopped = true;
            tracing::error!(failures = state.failures, reason, "encoder service stopped");
        }
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

/// The first line of what a panic said.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .and_then(|message| message.lines().next())
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests;
