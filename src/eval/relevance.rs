//! Who is relevant to whom: items that share a class.

use crate::labels::Labels;

/// Who is relevant to a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relevance<'a> {
    query: Labels<'a>,
    database: Labels<'a>,
}

impl<'a> Relevance<'a> {
    pub(super) fn new(query: Labels<'a>, database: Labels<'a>) -> Relevance<'a> {
        Relevance { query, database }
    }

    /// Writes 1 for each item of the database that is relevant to query `row`, else 0.
    pub(super) fn flags(&self, row: usize, out: &mut [u8]) {
        let items = out.iter_mut().enumerate();
        match (self.query, self.database) {
            (Labels::Classes(query), Labels::Classes(database)) => {
                let class = query[row];
                for (flag, &item) in out.iter_mut().zip(database) {
                    *flag = u8::from(item == class);
                }
            }
            (Labels::Sets(query), Labels::Sets(database)) => {
                let classes = query.words_of(row);
                for (item, flag) in items {
                    let of_item = database.words_of(item);
                    *flag = u8::from(classes.iter().zip(of_item).any(|(a, b)| a & b != 0));
                }
            }
            (Labels::Classes(query), Labels::Sets(database)) => {
                items.for_each(|(item, flag)| *flag = u8::from(database.has(item, query[row])));
            }
            (Labels::Sets(query), Labels::Classes(database)) => {
                items.for_each(|(item, flag)| *flag = u8::from(query.has(row, database[item])));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::LabelSets;

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
        let relevance = Relevance::new((&query).into(), (&database).into());
        let mut flags = [9; 4];
        relevance.flags(0, &mut flags);
        assert_eq!(flags, [1, 1, 0, 0]);
        relevance.flags(1, &mut flags);
        assert_eq!(flags, [0; 4]);
        assert!(LabelSets::new(0).is_err());
        // One class is a set of one, and may be a class that the sets do not know.
        let alone = [3, 129, 64, 4_000_000_000];
        Relevance::new((&query).into(), (&alone).into()).flags(0, &mut flags);
        assert_eq!(flags, [1, 0, 0, 0]);
        for (row, expected) in [[1, 0, 0, 0], [0, 1, 1, 0], [0; 4], [0; 4]]
            .iter()
            .enumerate()
        {
            Relevance::new((&alone).into(), (&database).into()).flags(row, &mut flags);
            assert_eq!(flags, *expected);
        }
    }
}
