//! The field type: `hash_code` custom fields of a tantivy schema.
//!
//! A field's parameters are compared exactly when an index is re-opened, so they hold the two things that
//! define its codes, the length and the model, and nothing that can be tuned.

use serde::{Deserialize, Serialize};
use tantivy::schema::{Field, FieldType, Schema, SchemaBuilder};

use crate::code::CodeLen;
use crate::error::{Error, Result};

/// The name of the custom field type in a schema.
pub const FIELD_TYPE: &str = "hash_code";

/// What defines the codes of a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HashFieldOptions {
    /// Bits of every code: a multiple of 8 from 16 to 1024.
    pub bits: usize,
    /// The model that makes the codes, or `None` if the application brings them from elsewhere. An index
    /// refuses an encoder with another [`model_id`](crate::encode::Encoder::model_id).
    pub model_id: Option<String>,
}

/// The JSON in the schema. Integers and strings only, so that it compares equal for ever.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    v: u32,
    bits: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
}

impl HashFieldOptions {
    /// Codes of `bits` bits from no named model.
    pub fn new(bits: usize) -> HashFieldOptions {
        HashFieldOptions {
            bits,
            model_id: None,
        }
    }

    /// Names the model that makes the codes.
    pub fn model_id(mut self, model_id: impl Into<String>) -> HashFieldOptions {
        self.model_id = Some(model_id.into());
        self
    }

    /// The length, checked.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn code_len(&self) -> Result<CodeLen> {
        CodeLen::new(self.bits)
    }

    /// The options of a field of a schema.
    ///
    /// # Errors
    /// `InvalidArgument` if the schema has no such field or it is of another type.
    pub fn of(schema: &Schema, field: Field) -> Result<HashFieldOptions> {
        if field.field_id() as usize >= schema.num_fields() {
            let (got, n) = (field.field_id(), schema.num_fields());
            return Err(Error::invalid(format!(
                "expected a field of the schema, which has {n}, got field {got}"
            )));
        }
        let entry = schema.get_field_entry(field);
        let custom = match entry.field_type() {
            FieldType::Custom(custom) if custom.type_name() == FIELD_TYPE => custom,
            other => {
                let (name, got) = (entry.name(), other.value_type());
                return Err(Error::invalid(format!(
                    "field `{name}`: expected a {FIELD_TYPE} field, got one of type {got:?}"
                )));
            }
        };
        let fail = |reason: String| Error::invalid(format!("field `{}`: {reason}", entry.name()));
        let params: Params = serde_json::from_value(custom.params().clone())
            .map_err(|error| fail(error.to_string()))?;
        if params.v != 1 {
            return Err(fail(format!(
                "expected parameters of version 1, got {}; upgrade",
                params.v
            )));
        }
        CodeLen::new(params.bits).map_err(|error| fail(error.to_string()))?;
        Ok(HashFieldOptions {
            bits: params.bits,
            model_id: params.model_id,
        })
    }

    /// The hash fields of a schema.
    ///
    /// # Errors
    /// `InvalidArgument` if the parameters of one make no sense.
    pub fn all(schema: &Schema) -> Result<Vec<(Field, HashFieldOptions)>> {
        schema
            .fields()
            .filter(|(_, entry)| {
                matches!(entry.field_type(), FieldType::Custom(custom) if custom.type_name() == FIELD_TYPE)
            })
            .map(|(field, _)| Ok((field, HashFieldOptions::of(schema, field)?)))
            .collect()
    }
}

/// Adds hash fields to a schema.
pub trait SchemaBuilderExt {
    /// Adds a field of hash codes. A document carries at most one code in it, or none.
    ///
    /// # Errors
    /// `InvalidArgument` unless `options.bits` is a multiple of 8 from 16 to 1024.
    fn add_hash_field(&mut self, name: &str, options: HashFieldOptions) -> Result<Field>;
}

impl SchemaBuilderExt for SchemaBuilder {
    fn add_hash_field(&mut self, name: &str, options: HashFieldOptions) -> Result<Field> {
        options
            .code_len()
            .map_err(|error| Error::invalid(format!("field `{name}`: {error}")))?;
        let params = Params {
            v: 1,
            bits: options.bits,
            model_id: options.model_id,
        };
        let params = serde_json::to_value(params).expect("numbers and strings always serialize");
        Ok(self.add_custom_field(name, FIELD_TYPE, params))
    }
}

#[cfg(test)]
mod tests {
    use tantivy::schema::TEXT;

    use super::*;

    #[test]
    fn options_survive_the_schema() {
        let mut builder = Schema::builder();
        let title = builder.add_text_field("title", TEXT);
        let options = HashFieldOptions::new(64).model_id("m");
        let image = builder.add_hash_field("image", options.clone()).unwrap();
        let plain = builder
            .add_hash_field("plain", HashFieldOptions::new(1024))
            .unwrap();
        assert!(
            builder
                .add_hash_field("odd", HashFieldOptions::new(65))
                .is_err()
        );
        let schema = builder.build();
        let json = serde_json::to_string(&schema).unwrap();
        let schema: Schema = serde_json::from_str(&json).unwrap();
        assert_eq!(HashFieldOptions::of(&schema, image).unwrap(), options);
        assert_eq!(HashFieldOptions::all(&schema).unwrap().len(), 2);
        assert_eq!(HashFieldOptions::of(&schema, plain).unwrap().model_id, None);
        let error = HashFieldOptions::of(&schema, title)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`title`") && error.contains("Str"),
            "{error}"
        );
        assert!(HashFieldOptions::of(&schema, Field::from_field_id(9)).is_err());
    }
}
