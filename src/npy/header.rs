//! The header of a `.npy` file: types of numbers, shape, order; read and written.

use super::{ALIGN, HEADER_BYTES_MAX, MAGIC};

/// The types of numbers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NpyType {
    /// `<f2`
    F16,
    /// `<f4`
    F32,
    /// `<f8`
    F64,
    /// `|b1`: one byte, 0 or 1.
    Bool,
    /// `|i1`
    I8,
    /// `|u1`
    U8,
    /// `<i2`
    I16,
    /// `<u2`
    U16,
    /// `<i4`
    I32,
    /// `<u4`
    U32,
    /// `<i8`
    I64,
    /// `<u8`
    U64,
}

/// Each type with NumPy's name of it and its bytes.
const TYPES: [(NpyType, &str, usize); 12] = [
    (NpyType::F16, "<f2", 2),
    (NpyType::F32, "<f4", 4),
    (NpyType::F64, "<f8", 8),
    (NpyType::Bool, "|b1", 1),
    (NpyType::I8, "|i1", 1),
    (NpyType::U8, "|u1", 1),
    (NpyType::I16, "<i2", 2),
    (NpyType::U16, "<u2", 2),
    (NpyType::I32, "<i4", 4),
    (NpyType::U32, "<u4", 4),
    (NpyType::I64, "<i8", 8),
    (NpyType::U64, "<u8", 8),
];

impl NpyType {
    fn row(self) -> &'static (NpyType, &'static str, usize) {
        TYPES
            .iter()
            .find(|row| row.0 == self)
            .expect("the table names every type")
    }

    /// NumPy's name, e.g. `<f4`.
    pub fn descr(self) -> &'static str {
        self.row().1
    }

    /// Bytes a value.
    pub fn size_bytes(self) -> usize {
        self.row().2
    }

    /// True for floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, NpyType::F16 | NpyType::F32 | NpyType::F64)
    }
}

/// What the header of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// The type of its numbers.
    pub dtype: NpyType,
    /// The size of each dimension; the slowest first, or last in Fortran order.
    pub shape: Vec<usize>,
    /// Columns one after the other instead of rows. Never said of an array of one dimension.
    pub fortran_order: bool,
}

impl NpyHeader {
    /// The header of a row-major array.
    pub(super) fn new(dtype: NpyType, shape: Vec<usize>) -> NpyHeader {
        NpyHeader {
            dtype,
            shape,
            fortran_order: false,
        }
    }

    /// The number of values, or `None` where no memory could hold them, or a row of them.
    pub(super) fn n_values(&self) -> Option<usize> {
        let mut sizes = self.shape.iter().rev();
        sizes.try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// The bytes of the header as NumPy 1.0 writes it, padded to a multiple of 64.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let sizes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let comma = if sizes.len() == 1 { "," } else { "" };
        let mut text = format!(
            "{{'descr': '{}', 'fortran_order': False, 'shape': ({}{comma}), }}",
            self.dtype.descr(),
            sizes.join(", ")
        );
        let prefix = MAGIC.len() + 4;
        let total = (prefix + text.len() + 1).next_multiple_of(ALIGN);
        text.extend(std::iter::repeat_n(' ', total - prefix - text.len() - 1));
        text.push('\n');
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }
}

/// Reads the header at the start of `bytes`; also gives the offset of the first value.
///
/// # Errors
/// One line: what was expected, what was found, and the remedy where there is one.
pub fn parse_header(bytes: &[u8]) -> Result<(NpyHeader, usize), String> {
    let Some((magic, rest)) = bytes.split_first_chunk::<6>() else {
        return Err(format!("expected a .npy file, found {} bytes", bytes.len()));
    };
    if magic != MAGIC {
        return Err(format!(
            "expected a .npy file, found one that starts with {magic:02x?}"
        ));
    }
    let cut_off = || format!("the header is cut off after {} bytes", bytes.len());
    let (&[major, minor], rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
    let (length, start, rest) = match (major, minor) {
        (1, 0) => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
            (usize::from(u16::from_le_bytes(*length)), 10, rest)
        }
        (2 | 3, 0) => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
            (u32::from_le_bytes(*length) as usize, 12, rest)
        }
        _ => {
            return Err(format!(
                "expected version 1.0 to 3.0 of the .npy format, found {major}.{minor}"
            ));
        }
    };
    if length > HEADER_BYTES_MAX {
        return Err(format!(
            "expected a header of at most {HEADER_BYTES_MAX} bytes, found {length}"
        ));
    }
    let text = rest.get(..length).ok_or_else(cut_off)?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is not text".to_owned())?;
    Ok((Parser { rest: text }.header()?, start + length))
}

/// A reader of the header's text: a Python dictionary with three keys.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn header(&mut self) -> Result<NpyHeader, String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect("{")?;
        while !self.eat("}") {
            let key = self.quoted()?;
            self.expect(":")?;
            let twice = match key {
                "descr" if self.next_is('[') => {
                    return Err("expected plain numbers, found a structured type; save the array of one field".into());
                }
                "descr" => descr.replace(self.quoted()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => {
                    return Err(format!(
                        "expected the keys descr, fortran_order and shape, found {key:?}"
                    ));
                }
            };
            if twice {
                return Err(format!("the header has {key} twice"));
            }
            if !self.eat(",") && !self.next_is('}') {
                return Err(self.unexpected("a comma or }"));
            }
        }
        if !self.rest.trim().is_empty() {
            return Err(self.unexpected("nothing after the header's dictionary"));
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return Err("the header lacks descr, fortran_order or shape".into());
        };
        let dtype = dtype(descr)?;
        Ok(NpyHeader {
            dtype,
            fortran_order: fortran && shape.len() > 1,
            shape,
        })
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn next_is(&mut self, what: char) -> bool {
        self.skip_blanks();
        self.rest.starts_with(what)
    }

    fn eat(&mut self, what: &str) -> bool {
        self.skip_blanks();
        match self.rest.strip_prefix(what) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        match self.eat(what) {
            true => Ok(()),
            false => Err(self.unexpected(what)),
        }
    }

    fn unexpected(&self, what: &str) -> String {
        let found: String = self.rest.chars().take(20).collect();
        format!("expected {what} in the header, found {found:?}")
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        self.skip_blanks();
        for quote in ['\'', '"'] {
            if let Some(rest) = self.rest.strip_prefix(quote)
                && let Some((text, rest)) = rest.split_once(quote)
            {
                self.rest = rest;
                return Ok(text);
            }
        }
        Err(self.unexpected("a quoted word"))
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.eat("True") {
            Ok(true)
        } else if self.eat("False") {
            Ok(false)
        } else {
            Err(self.unexpected("True or False"))
        }
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut sizes = Vec::new();
        self.expect("(")?;
        while !self.eat(")") {
            self.skip_blanks();
            let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = self.rest.split_at(digits);
            let size = number
                .parse()
                .map_err(|_| self.unexpected("a size of the shape"))?;
            self.rest = rest;
            sizes.push(size);
            if !self.eat(",") && !self.next_is(')') {
                return Err(self.unexpected("a comma or )"));
            }
        }
        Ok(sizes)
    }
}

fn dtype(descr: &str) -> Result<NpyType, String> {
    if let Some((dtype, ..)) = TYPES.iter().find(|row| row.1 == descr) {
        return Ok(*dtype);
    }
    Err(match descr.as_bytes() {
        [b'>', ..] => {
            format!(
                "the numbers are big endian ({descr}); save x.astype(x.dtype.newbyteorder('<'))"
            )
        }
        [b'|', b'O', ..] => {
            "the values are pickled objects, which are not read; save an array of numbers".into()
        }
        _ => format!("expected floats or integers of 1 to 8 bytes, found the type {descr:?}"),
    })
}
