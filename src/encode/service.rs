//! One encoder for many callers: batches across threads, bounded memory, failures contained.
//!
//! A worker thread of its own calls the encoder, so a model that must stay on one thread can. Threads of
//! the service prepare payloads (decode pictures, say) while the model is at work on earlier ones; batches
//! go to the model in the order of submission. Callers submit payloads and wait on tickets. An encoder that fails as a whole, panics or answers short is
//! asked again with half of the batch, down to single payloads, so one poisonous payload never harms its
//! neighbours. No code of a failed call is ever handed out. Process-killing inputs are out of reach here.

mod batch_size;
mod breaker;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{EncodeError, EncodeStage, Encoder, Payload, Prepared};
use crate::code::HashCode;
use crate::error::{Error, Result};
use batch_size::BatchSize;
use breaker::Breaker;

type Answer = Result<HashCode, EncodeError>;

/// How an [`EncoderService`] batches, and when it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Payloads of one call at most; the encoder's own maximum also holds. Below it, batches grow while
    /// that makes calls faster, and are halved when the device is out of memory. Default: 256.
    pub max_batch: usize,
    /// How long the first payload of a batch waits for company. Default: 5 ms.
    pub max_delay: Duration,
    /// Bytes of payloads taken in and not yet answered; above that, `submit` blocks. Default: 256 MB.
    pub queue_bytes: usize,
    /// Bytes that preparing payloads may take: the decoders at work, and pictures that wait for the model.
    /// A picture that needs more than all of it is prepared alone. Default: 256 MB.
    pub prepare_bytes: usize,
    /// Threads that prepare payloads, of an encoder that [prepares](Encoder::prepares). 0, the default,
    /// means one a core.
    pub prepare_threads: usize,
    /// Calls that fail on a single payload, in a row, after which the service stops; 0 for any number.
    /// Default: 64.
    pub max_failures: usize,
    /// The share of such failures above which the service stops although others succeed between them;
    /// none for any share. Default: 500 of the last 1,000 payloads.
    pub max_failure_share: Option<FailureShare>,
}

/// How many of the last payloads may make the encoder's call fail: more, and its service stops.
///
/// A payload counts as failed if the call with it alone fails as a whole. One that is answered with an
/// error of its own, such as a broken picture, counts as answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureShare {
    /// Payloads that may fail; less than `of_last`.
    pub max_failed: usize,
    /// Payloads they are counted over, the last ones that reached the encoder.
    pub of_last: usize,
}

impl Default for ServiceOptions {
    fn default() -> ServiceOptions {
        ServiceOptions {
            max_batch: 256,
            max_delay: Duration::from_millis(5),
            queue_bytes: 256_000_000,
            prepare_bytes: 256_000_000,
            prepare_threads: 0,
            max_failures: 64,
            max_failure_share: Some(FailureShare {
                max_failed: 500,
                of_last: 1000,
            }),
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
    /// Bytes that preparing takes: the bounds of payloads in preparation, and what is prepared and waits.
    pub prepared_bytes: usize,
    /// The most that `prepared_bytes` has been.
    pub max_prepared_bytes: usize,
    /// True from the moment the service stops itself until it is reset.
    pub stopped: bool,
}

/// Encodes payloads of many threads in common batches, on one worker thread.
///
/// Holds at most [`queue_bytes`](ServiceOptions::queue_bytes) of payloads and
/// [`prepare_bytes`](ServiceOptions::prepare_bytes) besides what the encoder's own calls take. Dropping it
/// answers what is queued, then ends its threads.
pub struct EncoderService {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held while one payload finds room, so that a large one is not overtaken for ever.
    door: Mutex<()>,
}

struct Shared {
    encoder: Arc<dyn Encoder>,
    options: ServiceOptions,
    prepares: bool,
    state: Mutex<State>,
    /// There may be a payload to prepare, or memory to do it: for the threads that prepare.
    raw: Condvar,
    /// There may be a batch to send: for the worker.
    work: Condvar,
    /// Payloads were answered: for those who wait for room, and for `flush`.
    answered: Condvar,
}

struct State {
    /// In the order of submission. Items become ready in any order, and leave from the front.
    queue: VecDeque<Item>,
    /// Items that have left the queue: the number of the one at its front.
    front_seq: u64,
    /// Place in the queue of the first item that nobody prepares yet.
    next_raw: usize,
    n_preparing: usize,
    batch_size: BatchSize,
    stats: ServiceStats,
    /// Payloads answered, in the order they came.
    n_answered: u64,
    /// Payloads up to this count are sent without waiting for company.
    flush_to: u64,
    /// True while a payload waits for room: then waiting for company would be waiting for nothing.
    crowded: bool,
    closing: bool,
    breaker: Breaker,
}

/// A queued payload. Dropped without an answer, it answers that it was not tried, so no ticket ever
/// waits in vain.
struct Item {
    payload: Payload,
    work: Work,
    /// What preparing it takes; once it is ready, what keeping it takes.
    prepare_bytes: usize,
    /// When it was ready.
    since: Instant,
    ticket: Arc<TicketState>,
    /// Place in the ticket; none once answered.
    slot: Option<usize>,
}

enum Work {
    Raw,
    Preparing,
    Ready(Result<Prepared, EncodeError>),
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
    /// `InvalidArgument` if `max_batch` is 0 or a share of failures cannot be exceeded, `Io` if no thread
    /// can be had.
    pub fn new(encoder: Arc<dyn Encoder>, options: ServiceOptions) -> Result<EncoderService> {
        if options.max_batch == 0 {
            return Err(Error::invalid("a batch has at least 1 payload, got 0"));
        }
        let breaker = Breaker::new(options.max_failures, options.max_failure_share)?;
        let batch_size = BatchSize::new(options.max_batch.min(encoder.max_batch()));
        let prepares = encoder.prepares();
        let n_preparing = match (prepares, options.prepare_threads) {
            (false, _) => 0,
            (true, 0) => std::thread::available_parallelism().map_or(1, |threads| threads.get()),
            (true, threads) => threads,
        };
        let shared = Arc::new(Shared {
            encoder,
            options,
            prepares,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                front_seq: 0,
                next_raw: 0,
                n_preparing: 0,
                batch_size,
                stats: ServiceStats::default(),
                n_answered: 0,
                flush_to: 0,
                crowded: false,
                closing: false,
                breaker,
            }),
            raw: Condvar::new(),
            work: Condvar::new(),
            answered: Condvar::new(),
        });
        let mut service = EncoderService {
            shared,
            threads: Vec::new(),
            door: Mutex::new(()),
        };
        // Should one fail to start, dropping the service ends the others.
        service.start("tanhash-encoder".to_owned(), Shared::work)?;
        for thread in 0..n_preparing {
            service.start(format!("tanhash-prepare-{thread}"), Shared::prepare)?;
        }
        Ok(service)
    }

    fn start(&mut self, name: String, run: fn(&Shared)) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || run(&shared))
            .map_err(|error| Error::io("encoder thread", error))?;
        self.threads.push(thread);
        Ok(())
    }

    /// The encoder behind the service.
    pub fn encoder(&self) -> &Arc<dyn Encoder> {
        &self.shared.encoder
    }

    /// Queues payloads. Blocks while more than `queue_bytes` would be held; a payload that is larger
    /// than that by itself is taken in once nothing else is held.
    ///
    /// # Errors
    /// `EncoderStopped` once too many calls have failed. Where that happens while a submission
    /// is being queued, all of it is taken in, and answered with [`EncodeStage::Stopped`] as all that is
    /// queued is.
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
            let (work, prepare_bytes) = match self.shared.prepares {
                true => (Work::Raw, self.shared.encoder.prepare_bytes(&payload)),
                false => (Work::Ready(Ok(Prepared::Payload(payload.clone()))), 0),
            };
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
            if slot == 0 {
                self.shared.check_running(&state)?;
            }
            state.stats.n_submitted += 1;
            state.stats.held_bytes += size_bytes;
            state.stats.max_held_bytes = state.stats.max_held_bytes.max(state.stats.held_bytes);
            state.queue.push_back(Item {
                payload,
                work,
                prepare_bytes,
                since: Instant::now(),
                ticket: Arc::clone(&ticket),
                slot: Some(slot),
            });
            if self.shared.prepares {
                self.shared.raw.notify_one();
            } else {
                state.next_raw = state.queue.len();
                self.shared.work.notify_one();
            }
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
        state.breaker.reset();
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
        self.shared.raw.notify_all();
        for thread in self.threads.drain(..) {
            // It only panics if the counting above is wrong, and then every item has answered itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn check_running(&self, state: &State) -> Result<()> {
        match state.breaker.error() {
            None => Ok(()),
            Some(kind) => Err(kind.into()),
        }
    }
}

#[cfg(test)]
mod tests;
