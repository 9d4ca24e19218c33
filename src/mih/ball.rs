//! Hamming balls: the values at each distance from a substring. Arithmetic only.

use crate::mih::MAX_SUBSTRING_BITS;

const N_SIZES: usize = MAX_SUBSTRING_BITS + 1;

/// Pascal's triangle.
const SIZES: [[u32; N_SIZES]; N_SIZES] = {
    let mut sizes = [[0; N_SIZES]; N_SIZES];
    let mut width = 0;
    while width < N_SIZES {
        sizes[width][0] = 1;
        let mut radius = 1;
        while radius <= width {
            sizes[width][radius] = sizes[width - 1][radius - 1] + sizes[width - 1][radius];
            radius += 1;
        }
        width += 1;
    }
    sizes
};

/// The number of values of `width` bits at distance exactly `radius` from a given one: 0 past the
/// width. Panics for a width over [`MAX_SUBSTRING_BITS`].
#[inline]
pub fn shell_size(width: usize, radius: usize) -> u32 {
    SIZES[width].get(radius).copied().unwrap_or(0)
}

/// Every mask of `width` bits with exactly `radius` of them set, ascending.
///
/// A value xor each mask is the shell of that radius about the value. Ascending masks differ mostly
/// in their low bits, so lookups that follow one another often share a cache line.
#[derive(Clone, Debug)]
pub struct Shell {
    next: u32,
    left: u32,
}

impl Shell {
    /// Panics for a width over [`MAX_SUBSTRING_BITS`].
    pub fn new(width: usize, radius: usize) -> Shell {
        let left = shell_size(width, radius);
        let next = if left == 0 { 0 } else { (1 << radius) - 1 };
        Shell { next, left }
    }
}

impl Iterator for Shell {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mask = self.next;
        if self.left > 0 {
            // The next number with as many bits set: move the lowest run's top bit up by one and the
            // rest of the run to the bottom.
            let carried = mask + (mask & mask.wrapping_neg());
            self.next = carried | ((mask ^ carried) >> (mask.trailing_zeros() + 2));
        }
        Some(mask)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_partition_all_values() {
        for width in 1..=14 {
            for radius in 0..=width + 1 {
                let masks: Vec<u32> = Shell::new(width, radius).collect();
                let expected: Vec<u32> = (0..1u32 << width)
                    .filter(|mask| mask.count_ones() as usize == radius)
                    .collect();
                assert_eq!(masks, expected, "width {width}, radius {radius}");
                assert_eq!(masks.len(), shell_size(width, radius) as usize);
            }
        }
    }

    #[test]
    fn the_widest_shells_end() {
        let width = MAX_SUBSTRING_BITS;
        assert_eq!(
            Shell::new(width, width).collect::<Vec<_>>(),
            [(1 << width) - 1]
        );
        assert_eq!(Shell::new(width, 11).last().map(u32::count_ones), Some(11));
        assert_eq!(
            (0..=width).map(|r| shell_size(width, r)).sum::<u32>(),
            1 << width
        );
    }
}
