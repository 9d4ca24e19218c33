//! stub
#![allow(missing_docs)]
use std::sync::Arc; use super::*;
#[derive(Clone, Default, Debug)] pub struct ServiceOptions;
pub struct EncoderService(Arc<dyn Encoder>);
pub struct Ticket(Vec<Result<HashCode, EncodeError>>);
impl EncoderService { pub fn start(e: Arc<dyn Encoder>, _o: ServiceOptions) -> Self { Self(e) } pub fn submit(&self, p: Vec<Payload>) -> Result<Ticket> { Ok(Ticket(self.0.encode(&p)?)) } }
impl Ticket { pub fn wait(self) -> Vec<Result<HashCode, EncodeError>> { self.0 } }
