//! The classes of items, one each or several. What follows from them, who is relevant to whom, is not known here.

use crate::error::{Error, Result};

/// The classes of the items of one set, in the order of its codes.
///
/// Two items are relevant to each other if they share a class.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a> {
    /// One class an item.
    Classes(&'a [u32]),
    /// Any number of classes an item, none included.
    Sets(&'a LabelSets),
}

impl<'a> From<&'a [u32]> for Labels<'a> {
    fn from(classes: &'a [u32]) -> Labels<'a> {
        Labels::Classes(classes)
    }
}

impl<'a> From<&'a Vec<u32>> for Labels<'a> {
    fn from(classes: &'a Vec<u32>) -> Labels<'a> {
        Labels::Classes(classes)
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Labels<'a> {
    fn from(classes: &'a [u32; N]) -> Labels<'a> {
        Labels::Classes(classes)
    }
}

impl<'a> From<&'a LabelSets> for Labels<'a> {
    fn from(sets: &'a LabelSets) -> Labels<'a> {
        Labels::Sets(sets)
    }
}

impl Labels<'_> {
    /// The number of items.
    pub fn len(&self) -> usize {
        match self {
            Labels::Classes(classes) => classes.len(),
            Labels::Sets(sets) => sets.len(),
        }
    }

    /// True if there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes of one item, ascending. Panics past the end.
    pub fn of(&self, item: usize) -> Vec<u32> {
        match self {
            Labels::Classes(classes) => vec![classes[item]],
            Labels::Sets(sets) => sets.of(item),
        }
    }

    /// The same items?
    pub(crate) fn same_as(&self, other: &Labels<'_>) -> bool {
        match (self, other) {
            (Labels::Classes(a), Labels::Classes(b)) => a == b,
            (Labels::Sets(a), Labels::Sets(b)) => a == b,
            _ => false,
        }
    }
}

/// Classes of items that may have several, as bit sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSets {
    n_items: usize,
    n_classes: usize,
    /// `n_items x n_classes.div_ceil(64)`.
    words: Vec<u64>,
}

impl LabelSets {
    /// No items yet, each to have some of the classes below `n_classes`.
    ///
    /// # Errors
    /// `InvalidArgument` unless `n_classes` is 1 to 65536.
    pub fn new(n_classes: usize) -> Result<LabelSets> {
        if !(1..=1 << 16).contains(&n_classes) {
            return Err(Error::invalid(format!(
                "label sets take 1 to 65536 classes, got {n_classes}"
            )));
        }
        Ok(LabelSets {
            n_items: 0,
            n_classes,
            words: Vec::new(),
        })
    }

    /// The sets of a matrix of indicators, a row of `n_classes` numbers an item: 1 where it has the class, else 0.
    ///
    /// # Errors
    /// As [`LabelSets::new`]; `InvalidArgument` for another number, or for numbers that are no whole rows.
    pub fn from_indicators(n_classes: usize, indicators: &[i64]) -> Result<LabelSets> {
        let mut sets = LabelSets::new(n_classes)?;
        if !indicators.len().is_multiple_of(n_classes) {
            return Err(Error::invalid(format!(
                "expected rows of {n_classes} indicators, got {} of them",
                indicators.len()
            )));
        }
        for (row, indicators) in indicators.chunks_exact(n_classes).enumerate() {
            if let Some(wrong) = indicators.iter().find(|value| !(0..=1).contains(*value)) {
                return Err(Error::invalid(format!(
                    "row {row}: expected 0 or 1 for each class, got {wrong}"
                )));
            }
            let classes = (0..).zip(indicators).filter(|(_, value)| **value == 1);
            sets.push(&classes.map(|(class, _)| class).collect::<Vec<u32>>())?;
        }
        Ok(sets)
    }

    /// Appends an item with these classes, in any order.
    ///
    /// # Errors
    /// `InvalidArgument` for a class out of range; the item is not appended.
    pub fn push(&mut self, classes: &[u32]) -> Result<()> {
        if let Some(class) = classes.iter().find(|&&c| c as usize >= self.n_classes) {
            return Err(Error::invalid(format!(
                "item {}: expected a class below {}, got {class}",
                self.n_items, self.n_classes
            )));
        }
        let start = self.words.len();
        self.words.resize(start + self.width(), 0);
        for &class in classes {
            self.words[start + class as usize / 64] |= 1 << (class % 64);
        }
        self.n_items += 1;
        Ok(())
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.n_items
    }

    /// True if there is no item.
    pub fn is_empty(&self) -> bool {
        self.n_items == 0
    }

    /// The number of classes.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// The items `chosen`, in that order. Panics if one is past the end.
    pub fn subset(&self, chosen: impl IntoIterator<Item = usize>) -> LabelSets {
        let mut subset = LabelSets {
            n_items: 0,
            n_classes: self.n_classes,
            words: Vec::new(),
        };
        for item in chosen {
            subset.words.extend_from_slice(self.words_of(item));
            subset.n_items += 1;
        }
        subset
    }

    /// The classes of one item, ascending. Panics past the end.
    pub fn of(&self, item: usize) -> Vec<u32> {
        (0..self.n_classes as u32)
            .filter(|&class| self.has(item, class))
            .collect()
    }

    /// True if `class` is one of the item's. Panics past the last item.
    pub fn has(&self, item: usize, class: u32) -> bool {
        let word = self.words_of(item).get(class as usize / 64);
        word.is_some_and(|word| word >> (class % 64) & 1 == 1)
    }

    fn width(&self) -> usize {
        self.n_classes.div_ceil(64)
    }

    /// The classes of one item as bits, 64 a word.
    pub(crate) fn words_of(&self, item: usize) -> &[u64] {
        &self.words[item * self.width()..][..self.width()]
    }
}
