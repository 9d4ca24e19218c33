//! When an encoder counts as broken: after failures in a row, or after too many among the last payloads.
//!
//! Counted are payloads that made the encoder's call fail with nobody else in it. A payload that got an
//! answer passed, even if the answer is an error of its own: that is the payload's fault. Opens by itself;
//! closes only when it is told to, because no clock knows when a model was repaired.

use std::collections::VecDeque;

use super::FailureShare;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug)]
pub(super) struct Breaker {
    /// 0 for never.
    max_in_a_row: usize,
    share: Option<FailureShare>,
    in_a_row: usize,
    /// Payloads tried since the start or the last reset.
    n_tried: u64,
    /// Which of them failed, those alone that are still among the last ones. With each goes what
    /// `n_tried` was after it.
    failed_at: VecDeque<u64>,
    /// Failures, and the tries they were counted over.
    opened_by: Option<(usize, usize)>,
    last_failure: String,
}

impl Breaker {
    /// # Errors
    /// `InvalidArgument` if the share can never be exceeded.
    pub(super) fn new(max_in_a_row: usize, share: Option<FailureShare>) -> Result<Breaker> {
        if let Some(FailureShare {
            max_failed,
            of_last,
        }) = share
            && max_failed >= of_last
        {
            return Err(Error::invalid(format!(
                "expected fewer allowed failures than payloads they are counted over, got \
                 {max_failed} of the last {of_last}; none switches the share off"
            )));
        }
        Ok(Breaker {
            max_in_a_row,
            share,
            in_a_row: 0,
            n_tried: 0,
            failed_at: VecDeque::new(),
            opened_by: None,
            last_failure: String::new(),
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.opened_by.is_some()
    }

    /// `n` payloads were answered.
    pub(super) fn passed(&mut self, n: usize) {
        self.in_a_row = 0;
        self.n_tried += n as u64;
    }

    /// A payload failed by itself. True if that opened the breaker.
    pub(super) fn failed(&mut self, reason: &str) -> bool {
        reason.clone_into(&mut self.last_failure);
        self.in_a_row += 1;
        self.n_tried += 1;
        if self.max_in_a_row > 0 && self.in_a_row >= self.max_in_a_row {
            self.opened_by = Some((self.in_a_row, self.in_a_row));
        }
        if let Some(share) = self.share {
            self.failed_at.push_back(self.n_tried);
            let of_last = share.of_last as u64;
            while self.failed_at[0] + of_last <= self.n_tried {
                self.failed_at.pop_front();
            }
            if !self.is_open() && self.failed_at.len() > share.max_failed {
                let of_last = self.n_tried.min(of_last) as usize;
                self.opened_by = Some((self.failed_at.len(), of_last));
            }
        }
        self.is_open()
    }

    /// Opens at once, for a failure that no further try can better.
    pub(super) fn open(&mut self, reason: &str) {
        reason.clone_into(&mut self.last_failure);
        self.in_a_row += 1;
        self.opened_by = Some((self.in_a_row, self.in_a_row));
    }

    /// Closes, and forgets what was counted.
    pub(super) fn reset(&mut self) {
        self.in_a_row = 0;
        self.n_tried = 0;
        self.failed_at.clear();
        self.opened_by = None;
    }

    /// Why it is open; none while it is closed.
    pub(super) fn error(&self) -> Option<ErrorKind> {
        let (failures, tried) = self.opened_by?;
        Some(ErrorKind::EncoderStopped {
            failures,
            tried,
            last: self.last_failure.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(max_failed: usize, of_last: usize) -> Option<FailureShare> {
        Some(FailureShare {
            max_failed,
            of_last,
        })
    }

    /// What opened it: failures, tries, and the last reason.
    fn opened(breaker: &Breaker) -> Option<(usize, usize, String)> {
        match breaker.error()? {
            ErrorKind::EncoderStopped {
                failures,
                tried,
                last,
            } => Some((failures, tried, last)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn opens_after_failures_in_a_row() {
        let mut breaker = Breaker::new(3, None).unwrap();
        for _ in 0..100 {
            assert!(!breaker.failed("a") && !breaker.failed("b"));
            breaker.passed(1);
        }
        assert!(!breaker.failed("a") && !breaker.failed("b"));
        assert_eq!(opened(&breaker), None);
        assert!(breaker.failed("c"));
        assert_eq!(opened(&breaker), Some((3, 3, "c".to_owned())));
        let mut never = Breaker::new(0, None).unwrap();
        assert!((0..10_000).all(|_| !never.failed("a")));
    }

    /// The counting above against a list of all outcomes.
    #[test]
    fn opens_when_more_than_the_share_failed() {
        for (max_failed, of_last) in [(0, 1), (0, 7), (1, 2), (3, 10), (9, 10), (50, 100)] {
            for seed in 0..40u64 {
                let mut breaker = Breaker::new(0, share(max_failed, of_last)).unwrap();
                let mut draw = seed;
                let mut outcomes: Vec<bool> = Vec::new();
                for _ in 0..2_000 {
                    draw = draw
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    if (draw >> 33) % 97 < seed * 2 {
                        outcomes.push(true);
                        let last = &outcomes[outcomes.len().saturating_sub(of_last)..];
                        let failed = last.iter().filter(|&&failed| failed).count();
                        assert_eq!(breaker.failed("x"), failed > max_failed);
                        if failed > max_failed {
                            assert_eq!(
                                opened(&breaker),
                                Some((failed, last.len(), "x".to_owned()))
                            );
                            break;
                        }
                    } else {
                        let n = (draw >> 50) as usize % 4;
                        outcomes.extend(std::iter::repeat_n(false, n));
                        breaker.passed(n);
                        assert!(!breaker.is_open());
                    }
                }
                assert!(breaker.failed_at.len() <= max_failed + 1);
            }
        }
    }

    #[test]
    fn a_reset_forgets_and_a_lost_device_waits_for_nothing() {
        let mut breaker = Breaker::new(64, share(1, 4)).unwrap();
        breaker.passed(2);
        assert!(!breaker.failed("a") && breaker.failed("b"));
        assert_eq!(opened(&breaker), Some((2, 4, "b".to_owned())));
        breaker.reset();
        assert!(!breaker.is_open() && !breaker.failed("a"));
        breaker.open("gone");
        assert_eq!(opened(&breaker), Some((2, 2, "gone".to_owned())));
    }

    #[test]
    fn a_share_that_cannot_be_exceeded_is_refused() {
        for (max_failed, of_last) in [(1, 1), (0, 0), (5, 4)] {
            let error = Breaker::new(64, share(max_failed, of_last)).unwrap_err();
            assert!(error.to_string().contains(&format!("last {of_last}")));
        }
    }
}
