//! Trees of classes, and how far apart two classes are in one.
//!
//! `distance(a, b) = height(LCA(a, b)) / height(root)`, the height of a node being the longest way down to
//! a leaf, and `similarity = 1 - distance` (Deng et al., CVPR 2011; Barz and Denzler, WACV 2019). Reads the
//! two files of Barz and Denzler's repository: pairs of a parent and a child, and an indented tree of names.
//! Leaves out graphs in which a node has two parents, WordNet's among them: the lowest common ancestor must be one.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::eval::ClassSimilarities;
use crate::files::read_text;

/// A rooted tree whose nodes have names, each name once.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    names: Vec<String>,
    by_name: HashMap<String, usize>,
    parents: Vec<Option<usize>>,
    /// Edges on the longest way down to a leaf.
    heights: Vec<usize>,
    /// Edges up to the root.
    depths: Vec<usize>,
    root: usize,
}

/// Nodes and edges as they are read.
#[derive(Default)]
struct Draft {
    names: Vec<String>,
    by_name: HashMap<String, usize>,
    parents: Vec<Option<usize>>,
}

impl Draft {
    fn node(&mut self, name: &str) -> usize {
        *self.by_name.entry(name.to_owned()).or_insert_with(|| {
            self.names.push(name.to_owned());
            self.parents.push(None);
            self.names.len() - 1
        })
    }

    fn edge(&mut self, line: usize, parent: usize, child: usize) -> Result<()> {
        if let Some(other) = self.parents[child] {
            return Err(Error::invalid(format!(
                "line {line}: a node of a tree has one parent, {:?} has {:?} and {:?}",
                self.names[child], self.names[other], self.names[parent]
            )));
        }
        self.parents[child] = Some(parent);
        Ok(())
    }
}

impl Hierarchy {
    /// Reads a file in either form; see [`Hierarchy::parse`].
    ///
    /// # Errors
    /// `Io`, or `InvalidArgument` as [`Hierarchy::parse`] gives it, with the path in front.
    pub fn read(path: impl AsRef<Path>) -> Result<Hierarchy> {
        let path = path.as_ref();
        Hierarchy::parse(&read_text(path)?)
            .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
    }

    /// A tree from text: an indented tree if any line starts with a dash or a blank, pairs otherwise.
    ///
    /// # Errors
    /// As [`Hierarchy::from_indented`] and [`Hierarchy::from_pairs`].
    pub fn parse(text: &str) -> Result<Hierarchy> {
        match text.lines().any(|line| line.starts_with(['-', ' ', '\t'])) {
            true => Hierarchy::from_indented(text),
            false => Hierarchy::from_pairs(text),
        }
    }

    /// A tree from lines `parent child`, in any order.
    ///
    /// # Errors
    /// `InvalidArgument` for a line that is no pair, a node with two parents, a cycle, or several roots.
    pub fn from_pairs(text: &str) -> Result<Hierarchy> {
        let mut draft = Draft::default();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                [parent, child] => {
                    let (parent, child) = (draft.node(parent), draft.node(child));
                    draft.edge(number, parent, child)?;
                }
                _ => {
                    return Err(Error::invalid(format!(
                        "line {number}: expected `parent child`, got {line:?}"
                    )));
                }
            }
        }
        Hierarchy::new(draft)
    }

    /// A tree from one name a line, a child deeper than its parent by any number of dashes or blanks.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that stands twice, a depth that fits no line above, or several roots.
    pub fn from_indented(text: &str) -> Result<Hierarchy> {
        let mut draft = Draft::default();
        // The way from the root to the last line: depth in characters, and node.
        let mut path: Vec<(usize, usize)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let name = line.trim_start_matches(['-', ' ', '\t']);
            let depth = line.len() - name.len();
            let name = name.trim_end();
            if name.is_empty() {
                continue;
            }
            let n_nodes = draft.names.len();
            let node = draft.node(name);
            if node < n_nodes {
                return Err(Error::invalid(format!(
                    "line {number}: expected each name once, {name:?} stands above already"
                )));
            }
            let last_popped = {
                let keep = path.iter().take_while(|(above, _)| *above < depth).count();
                let popped = path.get(keep).map(|&(above, _)| above);
                path.truncate(keep);
                popped
            };
            if last_popped.is_some_and(|above| above != depth) {
                return Err(Error::invalid(format!(
                    "line {number}: the depth of {name:?} is that of no line above it"
                )));
            }
            if let Some(&(_, parent)) = path.last() {
                draft.edge(number, parent, node)?;
            }
            path.push((depth, node));
        }
        Hierarchy::new(draft)
    }

    fn new(draft: Draft) -> Result<Hierarchy> {
        let Draft {
            names,
            by_name,
            parents,
        } = draft;
        let roots: Vec<usize> = (0..names.len()).filter(|&n| parents[n].is_none()).collect();
        let root = match roots[..] {
            _ if names.is_empty() => return Err(Error::invalid("expected a tree, got no node")),
            [] => {
                return Err(Error::invalid(format!(
                    "expected a tree, got a cycle: no node is without a parent, {:?} neither",
                    names[0]
                )));
            }
            [root] => root,
            [first, second, ..] => {
                return Err(Error::invalid(format!(
                    "expected one root, got {}: {:?}, {:?}{}",
                    roots.len(),
                    names[first],
                    names[second],
                    if roots.len() > 2 { ", .." } else { "" }
                )));
            }
        };
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); names.len()];
        for (child, parent) in parents.iter().enumerate() {
            if let Some(parent) = parent {
                children[*parent].push(child);
            }
        }
        // Breadth first, so a parent stands before its children.
        let mut order = vec![root];
        let mut depths = vec![usize::MAX; names.len()];
        depths[root] = 0;
        let mut next = 0;
        while let Some(&node) = order.get(next) {
            for &child in &children[node] {
                depths[child] = depths[node] + 1;
                order.push(child);
            }
            next += 1;
        }
        if let Some(lost) = depths.iter().position(|&depth| depth == usize::MAX) {
            return Err(Error::invalid(format!(
                "expected a tree, got a cycle: {:?} does not hang on the root {:?}",
                names[lost], names[root]
            )));
        }
        let mut heights = vec![0; names.len()];
        for &node in order.iter().rev() {
            if let Some(parent) = parents[node] {
                heights[parent] = heights[parent].max(heights[node] + 1);
            }
        }
        if heights[root] == 0 {
            return Err(Error::invalid(format!(
                "expected a tree with children, got the node {:?} alone",
                names[root]
            )));
        }
        Ok(Hierarchy {
            names,
            by_name,
            parents,
            heights,
            depths,
            root,
        })
    }

    /// The number of nodes; a node is a number below it.
    pub fn n_nodes(&self) -> usize {
        self.names.len()
    }

    /// The root.
    pub fn root(&self) -> usize {
        self.root
    }

    /// The node of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The name of a node. Panics past the end.
    pub fn name(&self, node: usize) -> &str {
        &self.names[node]
    }

    /// The nodes without children, in the order of the file.
    pub fn leaves(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.n_nodes()).filter(|&node| self.heights[node] == 0)
    }

    /// Edges on the longest way from a node down to a leaf. Panics past the end.
    pub fn height(&self, node: usize) -> usize {
        self.heights[node]
    }

    /// The lowest common ancestor of two nodes; of one node twice, itself. Panics past the end.
    pub fn lca(&self, mut a: usize, mut b: usize) -> usize {
        let up =
            |node: usize| self.parents[node].expect("two nodes meet at the root at the latest");
        while a != b {
            match self.depths[a] >= self.depths[b] {
                true => a = up(a),
                false => b = up(b),
            }
        }
        a
    }

    /// `height(LCA(a, b)) / height(root)`, from 0 to 1. Panics past the end.
    pub fn distance(&self, a: usize, b: usize) -> f64 {
        self.heights[self.lca(a, b)] as f64 / self.heights[self.root] as f64
    }

    /// The classes of a data set as leaves of this tree: by name, or by number where every node of the tree is
    /// named by a number and the classes are not. Where the exact name is missing, one that differs only in case or in `-`, `_` and
    /// blanks will do.
    ///
    /// # Errors
    /// `InvalidArgument` that names the first class which is missing, is an inner node, or shares its leaf.
    pub fn classes<S: AsRef<str>>(&self, class_names: &[S]) -> Result<ClassHierarchy> {
        let is_number = |name: &str| name.parse::<u64>().is_ok();
        let has_numbers = self.names.iter().all(|name| is_number(name));
        if has_numbers && !class_names.iter().all(|name| is_number(name.as_ref())) {
            return self.numbered_classes(class_names.len());
        }
        let mut alike: HashMap<String, Vec<usize>> = HashMap::new();
        for (node, name) in self.names.iter().enumerate() {
            alike.entry(plain(name)).or_default().push(node);
        }
        let find = |name: &str| {
            self.find(name)
                .or_else(|| match alike.get(&plain(name)).map(Vec::as_slice) {
                    Some(&[node]) => Some(node),
                    _ => None,
                })
        };
        self.leaves_of(class_names.iter().map(AsRef::as_ref), find)
    }

    /// The classes 0 to `n_classes - 1` as the leaves that have these numbers for names.
    ///
    /// # Errors
    /// As [`Hierarchy::classes`].
    pub fn numbered_classes(&self, n_classes: usize) -> Result<ClassHierarchy> {
        let names: Vec<String> = (0..n_classes).map(|class| class.to_string()).collect();
        self.leaves_of(names.iter().map(String::as_str), |name| self.find(name))
    }

    fn leaves_of<'a>(
        &self,
        class_names: impl Iterator<Item = &'a str>,
        find: impl Fn(&str) -> Option<usize>,
    ) -> Result<ClassHierarchy> {
        let mut leaves: Vec<usize> = Vec::new();
        let mut taken: HashMap<usize, String> = HashMap::new();
        for (class, name) in class_names.enumerate() {
            let problem = match find(name) {
                None => {
                    let some: Vec<&str> =
                        self.leaves().take(3).map(|leaf| self.name(leaf)).collect();
                    format!("is not in it; it has leaves {}, ..", some.join(", "))
                }
                Some(node) if self.heights[node] > 0 => {
                    "is an inner node of it; expected a leaf".to_owned()
                }
                Some(node) => match taken.insert(node, name.to_owned()) {
                    Some(other) => format!("has the same leaf as class {other:?}"),
                    None => {
                        leaves.push(node);
                        continue;
                    }
                },
            };
            return Err(Error::invalid(format!(
                "the hierarchy does not fit the classes: class {class} {name:?} {problem}"
            )));
        }
        if leaves.is_empty() {
            return Err(Error::invalid(
                "expected classes to look up in the hierarchy, got none",
            ));
        }
        Ok(ClassHierarchy {
            tree: self.clone(),
            leaves,
        })
    }
}

/// A name without what people write differently.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

/// The classes of a data set, each a leaf of a [`Hierarchy`].
#[derive(Clone, Debug)]
pub struct ClassHierarchy {
    tree: Hierarchy,
    /// The leaf of each class.
    leaves: Vec<usize>,
}

impl ClassHierarchy {
    /// The number of classes C.
    pub fn n_classes(&self) -> usize {
        self.leaves.len()
    }

    /// The whole tree.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.tree
    }

    /// The semantic distance of two classes: the height of their lowest common ancestor over the height
    /// of the root, from 0 to 1. Panics past the end.
    pub fn distance(&self, a: u32, b: u32) -> f64 {
        self.tree
            .distance(self.leaves[a as usize], self.leaves[b as usize])
    }

    /// 1 - [`distance`](ClassHierarchy::distance). Panics past the end.
    pub fn similarity(&self, a: u32, b: u32) -> f64 {
        1.0 - self.distance(a, b)
    }

    /// All distances, C x C, row-major; symmetric, with a diagonal of zeros.
    pub fn distances(&self) -> Vec<f32> {
        self.matrix(|a, b| self.distance(a, b) as f32)
    }

    /// All similarities, for [`Evaluation::similarities`](crate::eval::Evaluation::similarities).
    pub fn similarities(&self) -> ClassSimilarities {
        let values = self.matrix(|a, b| self.similarity(a, b));
        ClassSimilarities::new(self.n_classes(), values)
            .expect("a tree's similarities are from 0 to 1")
    }

    fn matrix<T>(&self, entry: impl Fn(u32, u32) -> T) -> Vec<T> {
        let n = self.n_classes() as u32;
        (0..n)
            .flat_map(|a| (0..n).map(move |b| (a, b)))
            .map(|(a, b)| entry(a, b))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heights: root 3, animal 2, bird 1, the others 0.
    const TREE: &str =
        "entity\n-- animal\n---- bird\n------ owl\n------ duck\n---- house cat\n-- car\n";
    const CLASSES: [&str; 4] = ["owl", "Duck", "house_cat", "car"];

    fn problem(text: &str) -> String {
        Hierarchy::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn heights_and_distances_by_hand() {
        let tree = Hierarchy::parse(TREE).unwrap();
        assert_eq!((tree.n_nodes(), tree.leaves().count()), (7, 4));
        let node = |name| tree.find(name).unwrap();
        for (name, height) in [("entity", 3), ("animal", 2), ("bird", 1), ("car", 0)] {
            assert_eq!(tree.height(node(name)), height, "{name}");
        }
        assert_eq!(tree.lca(node("owl"), node("house cat")), node("animal"));
        assert_eq!(tree.lca(node("owl"), node("bird")), node("bird"));
        let classes = tree.classes(&CLASSES).unwrap();
        let third = 1.0 / 3.0;
        let expected = [
            [0.0, third, 2.0 * third, 1.0],
            [third, 0.0, 2.0 * third, 1.0],
            [2.0 * third, 2.0 * third, 0.0, 1.0],
            [1.0, 1.0, 1.0, 0.0],
        ];
        let distances = classes.distances();
        for (found, expected) in distances.iter().zip(expected.as_flattened()) {
            assert!((f64::from(*found) - expected).abs() < 1e-7);
        }
        assert_eq!(classes.similarities().get(0, 1), 1.0 - third);
    }

    #[test]
    fn pairs_and_tabs_give_the_same_tree() {
        let pairs = "10 11\n11 12\n12 0\n12 1\n\n11 2\n10 3\n";
        let by_number = Hierarchy::parse(pairs).unwrap().classes(&CLASSES).unwrap();
        let tabs = TREE.replace("-- ", "\t").replace("--", "\t");
        let by_name = Hierarchy::parse(&tabs).unwrap().classes(&CLASSES).unwrap();
        let dashes = Hierarchy::parse(TREE).unwrap().classes(&CLASSES).unwrap();
        assert_eq!(by_number.distances(), dashes.distances());
        assert_eq!(by_name.distances(), dashes.distances());
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        assert!(problem("").contains("no node"));
        assert!(problem("a b\nc b\n").contains("line 2: a node of a tree has one parent, \"b\""));
        assert!(problem("a b\nb a\n").contains("no node is without a parent"));
        assert!(problem("r a\nb c\nc b\n").contains("does not hang on the root"));
        assert!(problem("a b\nc d\n").contains("expected one root, got 2: \"a\", \"c\""));
        assert!(problem("a b c\n").contains("line 1: expected `parent child`"));
        assert!(problem("a\n-- b\n-- b\n").contains("line 3"));
        assert!(problem("a\n---- b\n-- c\n").contains("line 3: the depth of \"c\""));
        assert!(problem("a\nb\n-- c\n").contains("expected one root, got 2"));
        assert!(
            Hierarchy::from_indented("a")
                .unwrap_err()
                .to_string()
                .contains("alone")
        );
    }

    #[test]
    fn classes_that_do_not_fit_are_named() {
        let tree = Hierarchy::parse(TREE).unwrap();
        let problem = |names: &[&str]| tree.classes(names).unwrap_err().to_string();
        assert!(problem(&["owl", "wolf"]).contains("class 1 \"wolf\" is not in it"));
        assert!(problem(&["bird"]).contains("class 0 \"bird\" is an inner node"));
        assert!(problem(&["owl", "OWL"]).contains("same leaf as class \"owl\""));
        assert!(problem(&[]).contains("got none"));
        // Classes that are called by numbers, in the order of text.
        let numbers = Hierarchy::parse("100 101\n101 0\n101 10\n100 2\n100 1\n").unwrap();
        let classes = numbers.classes(&["0", "1", "10", "2"]).unwrap();
        assert_eq!((classes.distance(0, 2), classes.distance(0, 1)), (0.5, 1.0));
        let error = numbers.classes(&["0", "1", "3"]).unwrap_err().to_string();
        assert!(error.contains("class 2 \"3\" is not in it"), "{error}");
        let numbers = Hierarchy::parse("9 0\n9 1\n").unwrap();
        let error = numbers.classes(&["a", "b", "c"]).unwrap_err().to_string();
        assert!(error.contains("class 2 \"2\" is not in it"), "{error}");
    }
}
