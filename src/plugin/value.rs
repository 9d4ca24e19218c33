//! What a document carries in a hash field: a code, or a payload that still has to be encoded.
//!
//! A custom value is opaque bytes to tantivy: one tag byte, then the body.

use smallvec::{SmallVec, smallvec};
use tantivy::TantivyDocument;
use tantivy::schema::Field;

use crate::code::{CodeLen, HashCode};
use crate::encode::Payload;
use crate::error::{Error, Result};

const TAG_CODE: u8 = 0;
const TAG_IMAGE: u8 = 1;
const TAG_VECTOR: u8 = 2;
/// A code that the writer's encoder made, told apart for the report alone.
pub(crate) const TAG_ENCODED: u8 = 3;

/// A value of a hash field.
#[derive(Clone, Debug, PartialEq)]
pub enum HashValue {
    /// A code, ready to store.
    Code(HashCode),
    /// Something an encoder turns into a code.
    Payload(Payload),
}

impl HashValue {
    /// As the bytes of a custom value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (tag, body) = match self {
            HashValue::Code(code) => (TAG_CODE, code.to_bytes()),
            HashValue::Payload(Payload::Image(bytes)) => (TAG_IMAGE, bytes.to_vec()),
            HashValue::Payload(Payload::Vector(values)) => (
                TAG_VECTOR,
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect(),
            ),
        };
        let mut bytes = Vec::with_capacity(1 + body.len());
        bytes.push(tag);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// From the bytes of a custom value.
    ///
    /// # Errors
    /// `InvalidArgument` for bytes that [`HashDocumentExt`] never writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<HashValue> {
        match bytes.split_first() {
            Some((&(TAG_CODE | TAG_ENCODED), body)) => {
                Ok(HashValue::Code(HashCode::from_bytes(body)?))
            }
            Some((&TAG_IMAGE, body)) => Ok(HashValue::Payload(Payload::Image(body.into()))),
            Some((&TAG_VECTOR, body)) if body.len() % 4 == 0 => {
                let (values, _) = body.as_chunks::<4>();
                let values = values
                    .iter()
                    .map(|value| f32::from_le_bytes(*value))
                    .collect();
                Ok(HashValue::Payload(Payload::Vector(values)))
            }
            first => Err(Error::invalid(format!(
                "expected a value made by add_code, add_image or add_vector, got {} bytes starting with {:?}",
                bytes.len(),
                first.map(|(tag, _)| tag)
            ))),
        }
    }
}

/// The length of the code that a custom value holds, if it holds one that is ready.
pub(crate) fn ready_len(bytes: &[u8]) -> Option<CodeLen> {
    match bytes.split_first()? {
        (&(TAG_CODE | TAG_ENCODED), body) => CodeLen::new(body.len() * 8).ok(),
        _ => None,
    }
}

/// Adds a code that the writer has encoded.
pub(crate) fn add_encoded(document: &mut TantivyDocument, field: Field, code: &HashCode) {
    add_tagged(document, field, TAG_ENCODED, code);
}

/// Millions of documents come with ready codes, so this allocates nothing for codes of up to 256 bits.
fn add_tagged(document: &mut TantivyDocument, field: Field, tag: u8, code: &HashCode) {
    let mut bytes: SmallVec<[u8; 36]> = smallvec![tag];
    for word in code.words() {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(1 + code.code_len().bytes());
    document.add_custom(field, &bytes);
}

/// Adds values of hash fields to documents.
pub trait HashDocumentExt {
    /// Adds a ready code.
    fn add_code(&mut self, field: Field, code: &HashCode);

    /// Adds an encoded picture (JPEG, PNG, ...) that the field's encoder turns into a code.
    fn add_image(&mut self, field: Field, bytes: &[u8]);

    /// Adds a float vector that the field's encoder turns into a code.
    fn add_vector(&mut self, field: Field, values: &[f32]);

    /// Adds a value of either kind.
    fn add_hash_value(&mut self, field: Field, value: &HashValue);
}

impl HashDocumentExt for TantivyDocument {
    fn add_code(&mut self, field: Field, code: &HashCode) {
        add_tagged(self, field, TAG_CODE, code);
    }

    fn add_image(&mut self, field: Field, bytes: &[u8]) {
        self.add_hash_value(field, &HashValue::Payload(Payload::Image(bytes.into())));
    }

    fn add_vector(&mut self, field: Field, values: &[f32]) {
        self.add_hash_value(field, &HashValue::Payload(Payload::Vector(values.into())));
    }

    fn add_hash_value(&mut self, field: Field, value: &HashValue) {
        match value {
            HashValue::Code(code) => self.add_code(field, code),
            HashValue::Payload(_) => self.add_custom(field, &value.to_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip() {
        let values = [
            HashValue::Code(HashCode::from_hex("0123").unwrap()),
            HashValue::Payload(Payload::Image([1, 2, 3].as_slice().into())),
            HashValue::Payload(Payload::Vector([0.5, -1.0].as_slice().into())),
        ];
        for value in values {
            assert_eq!(HashValue::from_bytes(&value.to_bytes()).unwrap(), value);
        }
        for bytes in [&[][..], &[9, 1], &[TAG_VECTOR, 1], &[TAG_CODE, 1]] {
            assert!(HashValue::from_bytes(bytes).is_err());
        }
    }
}
