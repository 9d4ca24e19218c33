//! The service under an encoder that fails in every way it can.

use super::*;
use crate::code::CodeLen;
use crate::error::ErrorKind;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Fails in the whole call, as long as the batch holds one of these values.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Error,
    Panic,
    Short,
    Long,
}

/// Encodes a vector of one number as that number; fails on the values it is told to.
#[derive(Default)]
struct Faulty {
    faults: Vec<(u16, Fault)>,
    /// Answered with an error of the item.
    bad_items: BTreeSet<u16>,
    wrong_len: BTreeSet<u16>,
    all_fail: std::sync::atomic::AtomicBool,
    delay: Duration,
    /// Batches larger than this do not fit, as on a small device.
    capacity: Option<usize>,
    n_calls: AtomicUsize,
    /// Payload bytes of the largest call.
    max_bytes: AtomicUsize,
}

fn len() -> CodeLen {
    CodeLen::new(16).unwrap()
}

fn code(value: u16) -> HashCode {
    HashCode::from_words(len(), &[u64::from(value)]).unwrap()
}

impl Encoder for Faulty {
    fn code_len(&self) -> CodeLen {
        len()
    }

    fn model_id(&self) -> &str {
        "faulty"
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Answer>> {
        self.n_calls.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        let bytes = batch.iter().map(Payload::size_bytes).sum();
        self.max_bytes.fetch_max(bytes, Ordering::Relaxed);
        if self.all_fail.load(Ordering::Relaxed) || self.capacity.is_some_and(|c| batch.len() > c) {
            return Err(ErrorKind::Encoder("out of memory".to_owned()).into());
        }
        let values: Vec<u16> = batch
            .iter()
            .map(|payload| match payload {
                Payload::Vector(values) => values[0] as u16,
                Payload::Image(_) => unreachable!(),
            })
            .collect();
        let mut answers: Vec<Answer> = values
            .iter()
            .map(|&value| {
                if self.bad_items.contains(&value) {
                    Err(EncodeError {
                        stage: EncodeStage::Decode,
                        reason: "bad item".to_owned(),
                    })
                } else if self.wrong_len.contains(&value) {
                    Ok(HashCode::zeros(CodeLen::new(32).unwrap()))
                } else {
                    Ok(code(value))
                }
            })
            .collect();
        match self.faults.iter().find(|fault| values.contains(&fault.0)) {
            None => {}
            Some((_, Fault::Error)) => {
                return Err(ErrorKind::Encoder("device lost".to_owned()).into());
            }
            Some((_, Fault::Panic)) => panic!("a bug in the model"),
            Some((_, Fault::Short)) => drop(answers.pop()),
            Some((_, Fault::Long)) => answers.push(Ok(code(0))),
        }
        Ok(answers)
    }
}

fn payloads(values: std::ops::Range<u16>) -> Vec<Payload> {
    values
        .map(|value| Payload::Vector([f32::from(value)][..].into()))
        .collect()
}

fn service(encoder: Faulty, options: ServiceOptions) -> EncoderService {
    EncoderService::new(Arc::new(encoder), options).unwrap()
}

/// Runs on another thread; panics instead of hanging when it does not end.
fn within_seconds<T: Send + 'static>(seconds: u64, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(run());
    });
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end after {seconds} s"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

#[test]
fn order_is_kept_and_batches_are_shared_among_threads() {
    within_seconds(60, || {
        let service = Arc::new(service(
            Faulty {
                delay: Duration::from_millis(2),
                ..Faulty::default()
            },
            ServiceOptions {
                max_batch: 64,
                max_delay: Duration::from_millis(20),
                ..ServiceOptions::default()
            },
        ));
        std::thread::scope(|scope| {
            for thread in 0..4u16 {
                let service = Arc::clone(&service);
                scope.spawn(move || {
                    for call in 0..50u16 {
                        let start = thread * 1000 + call * 10;
                        let ticket = service.submit(payloads(start..start + 10)).unwrap();
                        let codes: Vec<HashCode> =
                            ticket.wait().into_iter().map(Result::unwrap).collect();
                        assert_eq!(codes, (start..start + 10).map(code).collect::<Vec<_>>());
                    }
                });
            }
        });
        let stats = service.stats();
        assert_eq!(
            (stats.n_submitted, stats.n_encoded, stats.n_failed),
            (2000, 2000, 0)
        );
        assert_eq!(stats.held_bytes, 0);
        assert!(stats.max_batch > 10 && stats.max_batch <= 64, "{stats:?}");
        assert!(stats.n_calls < 200, "{stats:?}");
    });
}

#[test]
fn a_poisonous_payload_never_harms_its_neighbours() {
    within_seconds(60, || {
        for fault in [Fault::Error, Fault::Panic, Fault::Short, Fault::Long] {
            for at in [0, 1, 63, 99] {
                let service = service(
                    Faulty {
                        faults: vec![(at, fault)],
                        ..Faulty::default()
                    },
                    ServiceOptions::default(),
                );
                let answers = service.submit(payloads(0..100)).unwrap().wait();
                assert_eq!(answers.len(), 100);
                for (value, answer) in (0..).zip(&answers) {
                    if value == at {
                        let error = answer.as_ref().unwrap_err();
                        assert_eq!(error.stage, EncodeStage::Encode);
                        let expected = match fault {
                            Fault::Error => "encoder: device lost",
                            Fault::Panic => "the encoder panicked: a bug in the model",
                            Fault::Short => "expected 1 answers from the encoder, got 0",
                            Fault::Long => "expected 1 answers from the encoder, got 2",
                        };
                        assert_eq!(error.reason, expected);
                    } else {
                        assert_eq!(answer.as_ref().unwrap(), &code(value));
                    }
                }
                // The service lives on.
                let answers = service.submit(payloads(200..201)).unwrap().wait();
                assert_eq!(answers, [Ok(code(200))]);
                let stats = service.stats();
                assert_eq!(stats.n_panics > 0, fault == Fault::Panic);
                assert!(stats.n_calls < 24, "{stats:?}");
            }
        }
    });
}

#[test]
fn a_batch_too_large_for_the_device_is_halved() {
    within_seconds(60, || {
        let service = service(
            Faulty {
                capacity: Some(7),
                ..Faulty::default()
            },
            ServiceOptions::default(),
        );
        let answers = service.submit(payloads(0..100)).unwrap().wait();
        assert_eq!(answers, (0..100).map(|v| Ok(code(v))).collect::<Vec<_>>());
        assert!(!service.stats().stopped);
    });
}

#[test]
fn failures_of_items_pass_through_and_stop_nothing() {
    within_seconds(60, || {
        let service = service(
            Faulty {
                bad_items: (0..500).collect(),
                wrong_len: [600].into(),
                ..Faulty::default()
            },
            ServiceOptions {
                max_failures: 2,
                ..ServiceOptions::default()
            },
        );
        let answers = service.submit(payloads(0..601)).unwrap().wait();
        assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 501);
        let error = answers[600].as_ref().unwrap_err();
        assert_eq!(
            error.to_string(),
            "encode: expected a hash code of 16 bits, got 32 bits"
        );
        let stats = service.stats();
        assert!(!stats.stopped && stats.n_failed_calls == 0, "{stats:?}");
        assert_eq!((stats.n_encoded, stats.n_failed), (100, 501));
    });
}

#[test]
fn a_dead_encoder_stops_the_service_until_it_is_reset() {
    within_seconds(60, || {
        let encoder = Arc::new(Faulty::default());
        encoder.all_fail.store(true, Ordering::Relaxed);
        let service = EncoderService::new(
            Arc::clone(&encoder) as Arc<dyn Encoder>,
            ServiceOptions::default(),
        )
        .unwrap();
        let answers = service.submit(payloads(0..200)).unwrap().wait();
        let tried = answers
            .iter()
            .filter(|answer| answer.as_ref().unwrap_err().stage == EncodeStage::Encode)
            .count();
        assert_eq!(tried, 64);
        assert_eq!(
            answers[199].as_ref().unwrap_err().stage,
            EncodeStage::Stopped
        );
        let n_calls = encoder.n_calls.load(Ordering::Relaxed);
        let error = service.submit(payloads(0..1)).err().unwrap();
        assert_eq!(
            error.kind(),
            &ErrorKind::EncoderStopped {
                failures: 64,
                tried: 64,
                last: "encoder: out of memory".to_owned()
            }
        );
        assert!(service.submit(Vec::new()).is_err());
        assert_eq!(encoder.n_calls.load(Ordering::Relaxed), n_calls);
        assert!(service.stats().stopped);

        encoder.all_fail.store(false, Ordering::Relaxed);
        service.reset();
        let answers = service.submit(payloads(0..3)).unwrap().wait();
        assert!(answers.iter().all(Result::is_ok));

        // Never, if so told.
        encoder.all_fail.store(true, Ordering::Relaxed);
        let options = ServiceOptions {
            max_failures: 0,
            max_failure_share: None,
            ..ServiceOptions::default()
        };
        let service = EncoderService::new(encoder, options).unwrap();
        let answers = service.submit(payloads(0..1200)).unwrap().wait();
        assert!(
            answers
                .iter()
                .all(|a| a.as_ref().unwrap_err().stage == EncodeStage::Encode)
        );
    });
}

#[test]
fn an_encoder_that_fails_too_often_is_stopped_although_it_also_succeeds() {
    within_seconds(60, || {
        // Two of five fail, and never more than two in a row.
        let encoder = || Faulty {
            faults: (0..1000)
                .filter(|value| value % 5 < 2)
                .map(|value| (value, [Fault::Error, Fault::Panic][usize::from(value % 2)]))
                .collect(),
            ..Faulty::default()
        };
        let with_share = |max_failed| ServiceOptions {
            max_failures: 3,
            max_failure_share: Some(FailureShare {
                max_failed,
                of_last: 50,
            }),
            ..ServiceOptions::default()
        };
        let lenient = service(encoder(), with_share(20));
        let answers = lenient.submit(payloads(0..1000)).unwrap().wait();
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        assert_eq!((failed, lenient.stats().stopped), (400, false));

        let strict = service(encoder(), with_share(15));
        let answers = strict.submit(payloads(0..1000)).unwrap().wait();
        // The 16th that fails is 36; 37 payloads have been tried.
        for (value, answer) in (0..).zip(&answers) {
            match answer {
                Ok(found) => assert!(value < 36 && found == &code(value)),
                Err(error) if value <= 36 => assert_eq!(error.stage, EncodeStage::Encode),
                Err(error) => assert_eq!(error.stage, EncodeStage::Stopped),
            }
        }
        let expected = ErrorKind::EncoderStopped {
            failures: 16,
            tried: 37,
            last: "encoder: device lost".to_owned(),
        };
        for _ in 0..2 {
            let error = strict.submit(payloads(2..3)).err().unwrap();
            assert_eq!(error.kind(), &expected);
        }
        // A reset forgets the failures so far.
        strict.reset();
        let answers = strict.submit(payloads(0..36)).unwrap().wait();
        assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 15);
        assert!(!strict.stats().stopped);

        let endless = ServiceOptions {
            max_failure_share: Some(FailureShare {
                max_failed: 5,
                of_last: 5,
            }),
            ..ServiceOptions::default()
        };
        let error = EncoderService::new(Arc::new(Faulty::default()), endless).err();
        assert!(error.unwrap().to_string().contains("5 of the last 5"));
    });
}

#[test]
fn memory_stays_within_the_queue() {
    within_seconds(60, || {
        let encoder = Arc::new(Faulty {
            delay: Duration::from_millis(1),
            ..Faulty::default()
        });
        let options = ServiceOptions {
            // Nothing but the crowd makes a batch due.
            max_delay: Duration::from_secs(3600),
            queue_bytes: 1000,
            ..ServiceOptions::default()
        };
        let service =
            EncoderService::new(Arc::clone(&encoder) as Arc<dyn Encoder>, options).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u16 {
                let service = &service;
                scope.spawn(move || {
                    let tickets: Vec<Ticket> = (0..100)
                        .map(|i| {
                            // 40 bytes mostly, and now and then more than fits the queue.
                            let n = if i % 50 == 7 { 600 } else { 10 };
                            let vector = vec![f32::from(thread * 100 + i); n];
                            service
                                .submit(vec![Payload::Vector(vector.into())])
                                .unwrap()
                        })
                        .collect();
                    service.flush();
                    for (i, ticket) in (0..).zip(tickets) {
                        assert!(ticket.is_ready());
                        assert_eq!(ticket.wait(), [Ok(code(thread * 100 + i))]);
                    }
                });
            }
        });
        let stats = service.stats();
        // A large one comes in alone.
        assert_eq!(stats.max_held_bytes, 2400);
        assert_eq!(encoder.max_bytes.load(Ordering::Relaxed), 2400);
        assert_eq!((stats.n_encoded, stats.held_bytes), (400, 0));
    });
}

#[test]
fn one_submission_may_be_larger_than_the_queue() {
    within_seconds(60, || {
        let options = ServiceOptions {
            max_delay: Duration::from_secs(3600),
            queue_bytes: 64,
            ..ServiceOptions::default()
        };
        let service = service(Faulty::default(), options);
        let ticket = service.submit(payloads(0..500)).unwrap();
        service.flush();
        assert_eq!(ticket.wait().len(), 500);
        assert!(service.stats().max_held_bytes <= 64);
    });
}

#[test]
fn dropping_the_service_answers_what_is_pending() {
    within_seconds(60, || {
        let options = ServiceOptions {
            max_delay: Duration::MAX,
            ..ServiceOptions::default()
        };
        let service = service(Faulty::default(), options.clone());
        let ticket = service.submit(payloads(0..10)).unwrap();
        assert!(!ticket.is_ready());
        assert!(service.submit(Vec::new()).unwrap().wait().is_empty());
        drop(service);
        assert_eq!(
            ticket.wait(),
            (0..10).map(|v| Ok(code(v))).collect::<Vec<_>>()
        );

        let none = ServiceOptions {
            max_batch: 0,
            ..options
        };
        assert!(EncoderService::new(Arc::new(Faulty::default()), none).is_err());
    });
}

/// Prepares a vector of one number: 1,000 bytes of pixels that hold it, while it needs 3,000.
struct Preparing {
    faulty: Faulty,
    delay: Duration,
    /// Calls of `prepare` at work, and while the encoder was.
    at_work: AtomicUsize,
    encoding: std::sync::atomic::AtomicBool,
    overlaps: AtomicUsize,
    max_at_work: AtomicUsize,
}

impl Preparing {
    const NEEDED_BYTES: usize = 3000;
    const KEPT_BYTES: usize = 1000;

    fn new(faulty: Faulty, delay: Duration) -> Preparing {
        Preparing {
            faulty,
            delay,
            at_work: AtomicUsize::new(0),
            encoding: std::sync::atomic::AtomicBool::new(false),
            overlaps: AtomicUsize::new(0),
            max_at_work: AtomicUsize::new(0),
        }
    }
}

impl Encoder for Preparing {
    fn code_len(&self) -> CodeLen {
        len()
    }

    fn model_id(&self) -> &str {
        "preparing"
    }

    fn encode(&self, _batch: &[Payload]) -> Result<Vec<Answer>> {
        unreachable!("the service prepares")
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, payload: &Payload) -> std::result::Result<Prepared, EncodeError> {
        let now = self.at_work.fetch_add(1, Ordering::SeqCst) + 1;
        self.max_at_work.fetch_max(now, Ordering::SeqCst);
        let Payload::Vector(values) = payload else {
            unreachable!()
        };
        let value = values[0] as u16;
        // The first ones take longest, so that later ones are ready before them.
        std::thread::sleep(self.delay * u32::from(4 - value % 4));
        self.overlaps.fetch_add(
            usize::from(self.encoding.load(Ordering::SeqCst)),
            Ordering::SeqCst,
        );
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        assert_ne!(value, 666, "a bug in a decoder");
        match value {
            7 => Err(EncodeError {
                stage: EncodeStage::Decode,
                reason: "no picture".to_owned(),
            }),
            8 => Ok(Prepared::Code(code(8))),
            _ => {
                let mut pixels = vec![0; Preparing::KEPT_BYTES];
                pixels[..2].copy_from_slice(&value.to_le_bytes());
                Ok(Prepared::Pixels(pixels))
            }
        }
    }

    fn prepare_bytes(&self, _payload: &Payload) -> usize {
        Preparing::NEEDED_BYTES
    }

    fn encode_prepared(&self, batch: &[Prepared]) -> Result<Vec<Answer>> {
        self.encoding.store(true, Ordering::SeqCst);
        let value = |prepared: &Prepared| match prepared {
            Prepared::Pixels(pixels) => f32::from(u16::from_le_bytes([pixels[0], pixels[1]])),
            other => unreachable!("{other:?}"),
        };
        let payloads: Vec<Payload> = batch
            .iter()
            .map(|prepared| Payload::Vector([value(prepared)][..].into()))
            .collect();
        let answers = self.faulty.encode(&payloads);
        self.encoding.store(false, Ordering::SeqCst);
        answers
    }
}

#[test]
fn payloads_are_prepared_while_the_encoder_works_and_memory_is_bounded() {
    within_seconds(60, || {
        let faulty = Faulty {
            delay: Duration::from_millis(4),
            ..Faulty::default()
        };
        let encoder = Arc::new(Preparing::new(faulty, Duration::from_micros(200)));
        let options = ServiceOptions {
            max_batch: 10,
            // Time alone makes no batch due.
            max_delay: Duration::from_secs(3600),
            prepare_bytes: 16 * Preparing::KEPT_BYTES,
            prepare_threads: 3,
            ..ServiceOptions::default()
        };
        let service =
            EncoderService::new(Arc::clone(&encoder) as Arc<dyn Encoder>, options).unwrap();
        let ticket = service.submit(payloads(0..300)).unwrap();
        service.flush();
        for (value, answer) in (0..).zip(ticket.wait()) {
            match answer {
                Ok(found) => assert_eq!(found, code(value)),
                Err(error) => assert_eq!((value, error.reason.as_str()), (7, "no picture")),
            }
        }
        let stats = service.stats();
        assert_eq!((stats.n_encoded, stats.n_failed), (299, 1));
        assert_eq!(stats.prepared_bytes, 0);
        assert!(stats.max_prepared_bytes <= 16_000, "{stats:?}");
        assert!(stats.max_prepared_bytes > 9_000, "{stats:?}");
        assert_eq!(encoder.max_at_work.load(Ordering::SeqCst), 3);
        assert!(encoder.overlaps.load(Ordering::SeqCst) > 50);

        // A panic is the payload's own failure.
        let answers = service.submit(payloads(660..670)).unwrap();
        service.flush();
        let answers = answers.wait();
        assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
        let reason = answers[6].as_ref().unwrap_err().to_string();
        assert!(reason.contains("a bug in a decoder"), "{reason}");
        assert_eq!(service.stats().n_panics, 1);
    });
}

#[test]
fn one_payload_may_need_more_than_all_memory() {
    within_seconds(60, || {
        let options = ServiceOptions {
            max_delay: Duration::from_secs(3600),
            prepare_bytes: Preparing::NEEDED_BYTES - 1,
            prepare_threads: 3,
            ..ServiceOptions::default()
        };
        let encoder = Arc::new(Preparing::new(Faulty::default(), Duration::ZERO));
        let service =
            EncoderService::new(Arc::clone(&encoder) as Arc<dyn Encoder>, options).unwrap();
        let ticket = service.submit(payloads(100..150)).unwrap();
        service.flush();
        assert!(ticket.wait().iter().all(std::result::Result::is_ok));
        assert_eq!(encoder.max_at_work.load(Ordering::SeqCst), 1);
        assert_eq!(service.stats().max_prepared_bytes, Preparing::NEEDED_BYTES);
        drop(service.submit(payloads(0..50)).unwrap());
        drop(service);
    });
}

/// Fails every call above a size for lack of memory, and every call once its device is gone.
struct Device {
    capacity: usize,
    lost: std::sync::atomic::AtomicBool,
    calls: Mutex<Vec<usize>>,
}

impl Device {
    fn new(capacity: usize) -> Arc<Device> {
        Arc::new(Device {
            capacity,
            lost: std::sync::atomic::AtomicBool::new(false),
            calls: Mutex::default(),
        })
    }
}

impl Encoder for Device {
    fn code_len(&self) -> CodeLen {
        len()
    }

    fn model_id(&self) -> &str {
        "device"
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Answer>> {
        self.calls.lock().push(batch.len());
        if self.lost.load(Ordering::SeqCst) {
            return Err(ErrorKind::DeviceLost("illegal memory access".to_owned()).into());
        }
        if batch.len() > self.capacity {
            return Err(ErrorKind::DeviceMemory("tried to allocate 2 GB".to_owned()).into());
        }
        Faulty::default().encode(batch)
    }
}

#[test]
fn memory_of_the_device_is_exceeded_once() {
    within_seconds(60, || {
        let device = Device::new(20);
        let encoder = Arc::clone(&device) as Arc<dyn Encoder>;
        let service = EncoderService::new(encoder, ServiceOptions::default()).unwrap();
        let answers = service.submit(payloads(0..640)).unwrap().wait();
        assert_eq!(answers, (0..640).map(|v| Ok(code(v))).collect::<Vec<_>>());
        let too_large = device.calls.lock().iter().filter(|&&n| n > 20).count();
        // 64, then its halves of 32, and never again.
        assert!((1..=3).contains(&too_large), "{too_large}");
        assert!(!service.stats().stopped);
    });
}

#[test]
fn a_lost_device_stops_at_once_or_is_replaced() {
    within_seconds(60, || {
        let device = Device::new(1000);
        let encoder = Arc::clone(&device) as Arc<dyn Encoder>;
        // One batch, whatever the machine is busy with: nothing is sent before it is flushed.
        let options = ServiceOptions {
            max_delay: Duration::from_secs(3600),
            ..ServiceOptions::default()
        };
        let service = EncoderService::new(encoder, options).unwrap();
        let ticket = service.submit(payloads(0..5)).unwrap();
        service.flush();
        assert!(ticket.wait()[0].is_ok());
        let n_calls = device.calls.lock().len();
        device.lost.store(true, Ordering::SeqCst);
        let ticket = service.submit(payloads(0..40)).unwrap();
        service.flush();
        let answers = ticket.wait();
        let stages: BTreeSet<String> = answers
            .iter()
            .map(|answer| answer.as_ref().unwrap_err().stage.to_string())
            .collect();
        assert_eq!(stages, ["stopped".to_owned()].into());
        assert_eq!(device.calls.lock().len(), n_calls + 1, "no second try");
        let error = service.submit(payloads(0..1)).err().unwrap().to_string();
        assert!(error.contains("illegal memory access"), "{error}");

        let cpu = Device::new(1000);
        let both = crate::encode::Fallback::new(
            Arc::clone(&device) as Arc<dyn Encoder>,
            Arc::clone(&cpu) as Arc<dyn Encoder>,
        );
        let both = Arc::new(both.unwrap());
        let encoder = Arc::clone(&both) as Arc<dyn Encoder>;
        let service = EncoderService::new(encoder, ServiceOptions::default()).unwrap();
        let answers = service.submit(payloads(0..500)).unwrap().wait();
        assert!(answers.iter().all(std::result::Result::is_ok));
        assert!(both.is_lost());
        assert_eq!(
            device.calls.lock().len(),
            n_calls + 2,
            "the first device is left alone"
        );

        let other = Arc::new(Preparing::new(Faulty::default(), Duration::ZERO));
        assert!(crate::encode::Fallback::new(cpu, other).is_err());
    });
}
