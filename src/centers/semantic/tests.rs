//! The solver against an independent solver's recorded states, and what every result keeps.

use super::*;
