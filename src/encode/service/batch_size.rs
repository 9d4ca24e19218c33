//! How many payloads a call of the encoder gets: more as long as that is faster, fewer once memory ends.

/// Payloads of the first calls.
const FIRST: usize = 64;

/// Calls that are timed at each size; the fastest counts, as the others were disturbed.
const CALLS_TIMED: usize = 3;

/// The least gain for which batches are doubled.
const GAIN_MIN: f64 = 1.05;

/// Doubles the batch while calls get faster by the payload, and never goes back above a size that did not
/// fit the device.
#[derive(Debug)]
pub(super) struct BatchSize {
    size: usize,
    max: usize,
    /// Payloads a second at half of this size; 0 at the first one.
    smaller_rate: f64,
    /// The best rate of the calls so far at this size, and how many they are.
    rate: f64,
    n_timed: usize,
    settled: bool,
}

impl BatchSize {
    pub(super) fn new(max: usize) -> BatchSize {
        BatchSize {
            size: max.clamp(1, FIRST),
            max: max.max(1),
            smaller_rate: 0.0,
            rate: 0.0,
            n_timed: 0,
            settled: false,
        }
    }

    pub(super) fn get(&self) -> usize {
        self.size
    }

    /// A call with `n` payloads took `seconds`. Smaller ones than asked for say nothing.
    pub(super) fn succeeded(&mut self, n: usize, seconds: f64) {
        if self.settled || n != self.size {
            return;
        }
        self.rate = self.rate.max(n as f64 / seconds.max(1e-9));
        self.n_timed += 1;
        if self.n_timed < CALLS_TIMED {
            return;
        }
        if self.rate < GAIN_MIN * self.smaller_rate {
            self.size = (self.size / 2).max(1);
            self.settled = true;
        } else if self.size == self.max {
            self.settled = true;
        } else {
            self.size = (self.size * 2).min(self.max);
            self.smaller_rate = self.rate;
            (self.rate, self.n_timed) = (0.0, 0);
        }
    }

    /// A call with `n` payloads did not fit the device.
    pub(super) fn did_not_fit(&mut self, n: usize) {
        self.max = self.max.min((n / 2).max(1));
        self.size = self.size.min(self.max);
        self.settled = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs calls that take `overhead + n * each` seconds, and fail above `capacity` payloads.
    fn settle(max: usize, overhead: f64, each: f64, capacity: usize) -> usize {
        let mut size = BatchSize::new(max);
        for _ in 0..100 {
            let n = size.get();
            assert!((1..=max).contains(&n));
            match n <= capacity {
                true => size.succeeded(n, overhead + n as f64 * each),
                false => size.did_not_fit(n),
            }
        }
        size.get()
    }

    #[test]
    fn grows_as_long_as_it_pays() {
        assert_eq!(settle(4096, 0.0, 1e-3, usize::MAX), 64);
        assert_eq!(settle(4096, 1.0, 0.0, usize::MAX), 4096);
        // 64: 64 / 0.164 = 390 a second; 128: 561; 256: 719; 512: 837; 1024: 911; 2048: 953, under 5 % more.
        assert_eq!(settle(4096, 0.1, 1e-3, usize::MAX), 1024);
        assert_eq!(settle(300, 1.0, 0.0, usize::MAX), 300);
        assert_eq!(settle(7, 1.0, 0.0, usize::MAX), 7);
    }

    #[test]
    fn memory_ends_the_growth_for_good() {
        assert_eq!(settle(4096, 1.0, 0.0, 300), 256);
        assert_eq!(settle(4096, 1.0, 0.0, 20), 16);
        let mut size = BatchSize::new(100);
        size.did_not_fit(1);
        assert_eq!(size.get(), 1);
        size.succeeded(1, 1e-9);
        assert_eq!(size.get(), 1);
    }

    #[test]
    fn partial_batches_say_nothing() {
        let mut size = BatchSize::new(1000);
        (0..100).for_each(|_| size.succeeded(63, 1e-6));
        assert_eq!(size.get(), 64);
    }
}
