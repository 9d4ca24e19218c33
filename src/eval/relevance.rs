//! Who is relevant to whom: items that share a class.

use crate::error::{Error, Result};
use crate::labels::{LabelSets, Labels};

/// Who is relevant to a query.
#[derive(Clone, Copy, Debug)]
pub(super) enum Relevance<'a> {
    SameClass {
        query: &'a [u32],
        database: &'a [u32],
    },
    SharedClass {
        query: &'a LabelSets,
        database: &'a LabelSets,
    },
}

impl<'a> Relevance<'a> {
    pub(super) fn new(query: Labels<'a>, database: Labels<'a>) -> Result<Relevance<'a>> {
        match (query, database) {
            (Labels::Classes(query), Labels::Classes(database)) => {
                Ok(Relevance::SameClass { query, database })
            }
            (Labels::Sets(query), Labels::Sets(database)) => {
                Ok(Relevance::SharedClass { query, database })
            }
            _ => Err(Error::invalid(
                "queries and database need labels of one kind, got one class an item and sets of classes",
            )),
        }
    }

    /// Writes 1 for each item of the database that is relevant to query `row`, else 0.
    pub(super) fn flags(&self, row: usize, out: &mut [u8]) {
        match *self {
            Relevance::SameClass { query, database } => {
                let class = query[row];
                for (flag, &item) in out.iter_mut().zip(database) {
                    *flag = u8::from(item == class);
                }
            }
            Relevance::SharedClass { query, database } => {
                let classes = query.words_of(row);
                for (item, flag) in out.iter_mut().enumerate() {
                    let of_item = database.words_of(item);
                    *flag = u8::from(classes.iter().zip(of_item).any(|(a, b)| a & b != 0));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_share_a_class_or_do_not() {
        let mut query = LabelSets::new(70).unwrap();
        query.push(&[69, 3]).unwrap();
        query.push(&[]).unwrap();
        assert!(
            query
                .push(&[70])
                .unwrap_err()
                .to_string()
                .contains("item 2")
        );
        let mut database = LabelSets::new(130).unwrap();
        for classes in [&[3][..], &[69, 129], &[4, 129], &[]] {
            database.push(classes).unwrap();
        }
        assert_eq!(query.of(0), [3, 69]);
        assert_eq!((query.len(), database.len()), (2, 4));
        let relevance = Relevance::new((&query).into(), (&database).into()).unwrap();
        let mut flags = [9; 4];
        relevance.flags(0, &mut flags);
        assert_eq!(flags, [1, 1, 0, 0]);
        relevance.flags(1, &mut flags);
        assert_eq!(flags, [0; 4]);
        assert!(Relevance::new((&[1u32]).into(), (&database).into()).is_err());
        assert!(LabelSets::new(0).is_err());
    }
}
